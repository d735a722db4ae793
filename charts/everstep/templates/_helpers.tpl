{{- define "everstep.name" -}}
{{- if contains "everstep" .Release.Name }}{{ .Release.Name | trunc 50 | trimSuffix "-" }}{{ else }}{{ printf "%s-everstep" .Release.Name | trunc 50 | trimSuffix "-" }}{{ end }}
{{- end }}

{{- define "everstep.selector" -}}
app.kubernetes.io/name: everstep
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "everstep.labels" -}}
{{ include "everstep.selector" . }}
app.kubernetes.io/component: operator
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
{{- end }}

{{- define "everstep.serviceAccount" -}}
{{- if .Values.serviceAccount.create }}{{ .Values.serviceAccount.name | default (include "everstep.name" .) }}{{ else }}{{ required "serviceAccount.create is false: name the account in serviceAccount.name" .Values.serviceAccount.name }}{{ end }}
{{- end }}

{{- define "everstep.priorityClass" -}}
{{- .Values.priorityClass.name | default (ternary (include "everstep.name" .) "" .Values.priorityClass.create) }}
{{- end }}

{{- define "everstep.tokenKeySecret" -}}
{{- .Values.tokenKey.existingSecret | default (printf "%s-token-key" (include "everstep.name" .)) }}
{{- end }}

{{/* Names of cluster-wide objects carry the namespace: two releases may have one name. */}}
{{- define "everstep.clusterName" -}}
{{- if eq (include "everstep.name" .) .Release.Namespace }}{{ include "everstep.name" . }}{{ else }}{{ printf "%s-%s" .Release.Namespace (include "everstep.name" .) | trunc 63 | trimSuffix "-" }}{{ end }}
{{- end }}

{{- define "everstep.operatorImage" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}

{{- define "everstep.runtimeImage" -}}
{{ .Values.runtimeImage.repository }}:{{ .Values.runtimeImage.tag | default .Chart.AppVersion }}
{{- end }}

{{/* What the operator does in the namespaces of runs. tests/cluster/test_rbac.py holds it against the audit log. */}}
{{- define "everstep.rules" -}}
- apiGroups: [everstep.dev]
  resources: [trainingruns]
  verbs: [get, list, watch, delete]
- apiGroups: [everstep.dev]
  resources: [trainingruns/status]
  verbs: [update, patch]
- apiGroups: [""]
  resources: [pods]
  verbs: [list, watch, create, delete]
- apiGroups: [""]
  resources: [services, configmaps]
  verbs: [create, patch]
- apiGroups: [""]
  resources: [secrets]
  verbs: [create]
- apiGroups: [""]
  resources: [events]
  verbs: [list, create, patch]  # those about pods that do not start
- apiGroups: [networking.k8s.io]
  resources: [networkpolicies]
  verbs: [create, patch]
- apiGroups: [policy]
  resources: [poddisruptionbudgets]
  verbs: [create, patch]
{{- end }}

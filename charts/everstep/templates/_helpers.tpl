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
{{- .Values.priorityClass.name | default (ternary (include "everstep.clusterName" .) "" .Values.priorityClass.create) }}
{{- end }}

{{- define "everstep.tokenKeySecret" -}}
{{- .Values.tokenKey.existingSecret | default (printf "%s-token-key" (include "everstep.name" .)) }}
{{- end }}

{{/* Names of cluster-wide objects carry the namespace: two releases may have one name. */}}
{{- define "everstep.clusterName" -}}
{{- if eq (include "everstep.name" .) .Release.Namespace }}{{ include "everstep.name" . }}{{ else }}{{ printf "%s-%s" .Release.Namespace (include "everstep.name" .) | trunc 63 | trimSuffix "-" }}{{ end }}
{{- end }}

{{/* true, unless another release has brought the CRD. One that Helm would not keep is not left out: it would be deleted. */}}
{{- define "everstep.bringsCrd" -}}
{{- if .Values.crd.install }}
{{- $there := lookup "apiextensions.k8s.io/v1" "CustomResourceDefinition" "" "trainingruns.everstep.dev" | default dict }}
{{- $from := dig "metadata" "annotations" (dict) $there }}
{{- $ours := and (eq (get $from "meta.helm.sh/release-name") .Release.Name) (eq (get $from "meta.helm.sh/release-namespace") .Release.Namespace) }}
{{- $others := and (hasKey $from "meta.helm.sh/release-name") (not $ours) (eq (get $from "helm.sh/resource-policy") "keep") }}
{{- if not $others }}true{{ end }}
{{- end }}
{{- end }}

{{/* Of a repository and a tag or digest. */}}
{{- define "everstep.image" -}}
{{- $tag := .image.tag | default .default }}
{{- required .missing .image.repository }}{{ ternary "@" ":" (hasPrefix "sha256:" $tag) }}{{ $tag }}
{{- end }}

{{- define "everstep.operatorImage" -}}
{{ include "everstep.image" (dict "image" .Values.image "default" .Chart.AppVersion "missing" "image.repository is empty: name your copy of the operator's image, --set image.repository=REGISTRY/everstep/operator") }}
{{- end }}

{{- define "everstep.runtimeImage" -}}
{{ include "everstep.image" (dict "image" .Values.runtimeImage "default" .Chart.AppVersion "missing" "runtimeImage.repository is empty: name your copy of the runtime's image, --set runtimeImage.repository=REGISTRY/everstep/runtime") }}
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

"""Write what comes from charts/everstep and crds/: the chart's copy of the CRD, one manifest for `kubectl apply -f`.

python deploy/render.py            write charts/everstep/files/trainingruns.yaml and deploy/everstep.yaml
python deploy/render.py --check    exit 1 if they are not fresh
"""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
CHART = ROOT / "charts" / "everstep"
CRD = ROOT / "crds" / "everstep.dev_trainingruns.yaml"
COPY = CHART / "files" / "trainingruns.yaml"  # a chart reads only what lies in its own folder
MANIFEST = ROOT / "deploy" / "everstep.yaml"


def manifest() -> str:
    """The chart as plain objects, with its namespace."""
    command = [sys.executable, ROOT / "deploy" / "helm.py"]
    helm = subprocess.run(command, check=True, text=True, stdout=subprocess.PIPE).stdout.strip()
    command = [helm, "template", "everstep", CHART, "--namespace", "everstep-system"]
    command += ["--values", ROOT / "deploy" / "values.yaml"]
    objects = subprocess.run(command, check=True, text=True, stdout=subprocess.PIPE).stdout
    return (ROOT / "deploy" / "namespace.yaml").read_text() + objects


def main() -> int:
    check = sys.argv[1:] == ["--check"]
    stale = COPY.read_text() != CRD.read_text()
    if not check:
        COPY.write_text(CRD.read_text())
        MANIFEST.write_text(manifest())
        return 0
    if stale or MANIFEST.read_text() != manifest():
        print("deploy/everstep.yaml is not what the chart says: run `make generate` and commit it", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

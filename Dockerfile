# Two images from this source tree, for `docker build` or anything else that reads Dockerfiles:
#
#   docker build --target operator -t everstep/operator:0.1.0 .    the operator and the coordinators; no torch
#   docker build --target runtime  -t everstep/runtime:0.1.0 .     what training pods run
#
# pip asks PyPI, whose torch comes with CUDA (some gigabytes). For the CPU build of the same version:
#   --build-arg PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu
# Versions are those of constraints.txt. Dependencies lie in layers below the sources: a change of the sources builds
# and ships only the last, small layer. The images run as an unprivileged user and with a read-only root.
ARG PYTHON_IMAGE=python:3.11-slim-bookworm

FROM ${PYTHON_IMAGE} AS requirements
COPY pyproject.toml /src/
# What each extra asks for, taken out of pyproject.toml: other changes of that file install nothing anew.
RUN ["python3", "-c", "import pathlib, tomllib\nfor extra, names in tomllib.load(open('/src/pyproject.toml', 'rb'))['project']['optional-dependencies'].items(): pathlib.Path(f'/src/{extra}.txt').write_text('\\n'.join(names) + '\\n')"]

FROM ${PYTHON_IMAGE} AS wheel
ARG PIP_INDEX_URL
WORKDIR /src
RUN python3 -m pip install --no-cache-dir hatchling==1.27.0
COPY pyproject.toml README.md LICENSE ./
COPY protocol protocol
COPY operator operator
COPY runtime runtime
RUN python3 -m pip wheel --no-deps --no-build-isolation --wheel-dir /dist .

FROM ${PYTHON_IMAGE} AS operator-dependencies
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
COPY constraints.txt /src/
COPY --from=requirements /src/operator.txt /src/
# The clients of every Kubernetes API are 70 MB of text, most of it docstrings. Compiled without them they are 20.
RUN python3 -m venv --without-pip /opt/everstep \
    && python3 -m pip --python /opt/everstep/bin/python install --no-cache-dir --no-compile \
       --constraint /src/constraints.txt --requirement /src/operator.txt \
    # Not for the operator: what `everstep inject` takes along into images that lack Everstep.
    && python3 -m pip --python /opt/everstep/bin/python install --no-cache-dir --no-compile --no-deps \
       --constraint /src/constraints.txt obstore safetensors \
    && cd /opt/everstep/lib/python3*/site-packages \
    && python3 -OO -m compileall -q -b kubernetes && find kubernetes -name '*.py' -delete \
    # A time zone database that dateutil falls back to (all our times are UTC), and somebody's tests.
    && rm -r tzdata tzdata-* websocket/tests \
    && python3 -m compileall -q .

FROM ${PYTHON_IMAGE} AS runtime-dependencies
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
COPY constraints.txt /src/
COPY --from=requirements /src/runtime.txt /src/vision.txt /src/demo.txt /src/
RUN python3 -m venv --without-pip /opt/everstep \
    && python3 -m pip --python /opt/everstep/bin/python install --no-cache-dir \
       --constraint /src/constraints.txt \
       --requirement /src/runtime.txt --requirement /src/vision.txt --requirement /src/demo.txt

FROM operator-dependencies AS operator-package
COPY --from=wheel /dist /dist
# The runtime is there to be taken along; the little of it that is imported here needs no byte code.
RUN python3 -m pip --python /opt/everstep/bin/python install --no-deps --no-index --prefix /package /dist/*.whl \
    && find /package -path '*/site-packages/everstep/*' -name '*.pyc' -delete

FROM runtime-dependencies AS runtime-package
COPY --from=wheel /dist /dist
RUN python3 -m pip --python /opt/everstep/bin/python install --no-deps --no-index --prefix /package /dist/*.whl

# Never put the current folder on sys.path; write no byte code into a read-only root; a home that is there on every
# cluster, and a name for the user, whatever uid a pod gives it (torch and kopf ask for one).
FROM ${PYTHON_IMAGE} AS base
ENV PATH=/opt/everstep/bin:/usr/local/bin:/usr/bin:/bin \
    PYTHONSAFEPATH=1 PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 HOME=/tmp USER=everstep
USER 65532:65532
WORKDIR /work

FROM base AS runtime
COPY --from=runtime-dependencies /opt/everstep /opt/everstep
COPY --from=runtime-package /package /opt/everstep
# The script of examples/digits/trainingrun.yaml, so that a new cluster has something to train.
COPY examples/digits/train.py ./
CMD ["everstep", "launch", "--help"]

FROM base AS operator
COPY --from=operator-dependencies /opt/everstep /opt/everstep
COPY --from=operator-package /package /opt/everstep
CMD ["everstep", "operator"]

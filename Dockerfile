# Two images from one file: `docker build --target cpu .` (the default) and `docker build --target gpu .`.
# The base is Python on Debian; another one of 3.11 or newer does: --build-arg PYTHON_IMAGE=…
ARG PYTHON_IMAGE=python:3.11-slim-bookworm

# The dependencies, by their hashes, and no pip beside them. Behind a mirror or a proxy, hand pip its settings as build
# secrets, which stay out of the image: --secret id=pip,src=pip.conf --secret id=certificates,src=ca.crt
FROM ${PYTHON_IMAGE} AS packages-cpu
COPY requirements/service-cpu.txt /tmp/requirements.txt
RUN --mount=type=secret,id=pip,target=/etc/pip.conf \
    --mount=type=secret,id=certificates,target=/etc/pip-certificates.crt \
    python -m venv /opt/venv \
    && /opt/venv/bin/python -m pip install --no-cache-dir --disable-pip-version-check --require-hashes -r /tmp/requirements.txt \
    && /opt/venv/bin/python -m pip uninstall --quiet --yes setuptools pip

FROM ${PYTHON_IMAGE} AS packages-gpu
COPY requirements/service-gpu.txt /tmp/requirements.txt
RUN --mount=type=secret,id=pip,target=/etc/pip.conf \
    --mount=type=secret,id=certificates,target=/etc/pip-certificates.crt \
    python -m venv /opt/venv \
    && /opt/venv/bin/python -m pip install --no-cache-dir --disable-pip-version-check --require-hashes -r /tmp/requirements.txt \
    && /opt/venv/bin/python -m pip uninstall --quiet --yes setuptools pip

# Our own: code, compiled here since the container's root is read-only, and models; readable whatever the checkout's umask.
FROM ${PYTHON_IMAGE} AS ours
COPY service /app/service
COPY LICENSE /app/
COPY exported_models /models
RUN python -m compileall -q --invalidation-mode unchecked-hash /app/service && chmod -R a+rX /app /models \
    && mkdir /state

FROM ${PYTHON_IMAGE} AS runtime
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    ORT_DISABLE_TELEMETRY=1 \
    VAE_SERVE_HOST=0.0.0.0 \
    VAE_SERVE_MODELS=/models \
    VAE_SERVE_WELCOME=false
WORKDIR /app
COPY --from=ours /app /app
COPY --from=ours /models /models
# For VAE_SERVE_STATE, if it is set: a new volume mounted here belongs to the service.
COPY --from=ours --chown=65532:65532 /state /state
USER 65532:65532
EXPOSE 8000
# The service drains on SIGTERM: give it VAE_SERVE_DRAIN_GRACE_MS + VAE_SERVE_DRAIN_LIMIT_MS before SIGKILL.
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=5s --timeout=4s --start-period=60s --retries=3 CMD ["python", "-I", "-S", "-c", "\
import http.client, os; \
ask = http.client.HTTPConnection('127.0.0.1', int(os.environ.get('VAE_SERVE_PORT', '8000')), timeout=3); \
ask.request('GET', '/readyz'); \
raise SystemExit(ask.getresponse().status != 200)"]
CMD ["python", "-m", "service"]

# CUDA or nothing: without a device it does not start. Run with --gpus all.
FROM runtime AS gpu
ENV VAE_SERVE_DEVICE=cuda \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
COPY --from=packages-gpu /opt/venv /opt/venv

FROM runtime AS cpu
ENV VAE_SERVE_DEVICE=cpu
COPY --from=packages-cpu /opt/venv /opt/venv

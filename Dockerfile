# Polyhost on Debian 12: `docker build .`, without Java and MMS `docker build --target native .`; with the frameworks
# of your choice, named environments among them: docker build --build-arg EXTRAS=xgboost,sklearn,onnx,mxnet-1.9 .
ARG BASE_IMAGE=debian:bookworm-slim

FROM ${BASE_IMAGE} AS base
# libgomp1 and libquadmath0 are for MXNet; the other frameworks bring their own.
RUN apt-get update \
 && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends ca-certificates libgomp1 libquadmath0 python3 \
 && rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/log/*

# All of Java SE, cut to 53 MB: the package openjdk-17-jre-headless and what it depends on take 229 MB.
FROM base AS java
RUN apt-get update \
 && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends openjdk-17-jdk-headless \
 && "$(dirname "$(realpath /usr/bin/javac)")"/jlink --add-modules java.se,jdk.crypto.ec,jdk.management,jdk.net,jdk.unsupported \
      --compress=2 --strip-java-debug-attributes --no-header-files --no-man-pages --output /opt/java

# What only building needs. pip trusts the certificates that the base image trusts.
FROM base AS tools
ARG PIP_CERT=/etc/ssl/certs/ca-certificates.crt PIP_NO_CACHE_DIR=1 PIP_QUIET=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
RUN apt-get update \
 && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends gcc libc6-dev python3-venv
WORKDIR /src

# What to install, as files: layers stay when their list does, whatever else of EXTRAS or pyproject.toml changes.
FROM tools AS wanted
ARG EXTRAS=xgboost,sklearn,onnx
COPY pyproject.toml ./
COPY handlers/polyhost_handlers/environments handlers/polyhost_handlers/environments
RUN python3 -c "\
import os, pathlib, sys, tomllib; \
project = tomllib.load(open('pyproject.toml', 'rb'))['project']; \
found = {path.stem: tomllib.loads(path.read_text()) for path in pathlib.Path('handlers').rglob('environments/*.toml')}; \
names = {**{name: name for name in found}, **{old: name for name in found for old in found[name].get('also', [])}}; \
wanted = set(os.environ['EXTRAS'].replace(',', ' ').split()); \
own = wanted & {'xgboost', 'sklearn', 'onnx', 'traces'}; \
unknown = wanted - own - names.keys(); \
unknown and sys.exit(f'EXTRAS: no such framework or environment: {sorted(unknown)}'); \
extras = [project['optional-dependencies'][name] for name in sorted(own)]; \
open('server.txt', 'w').write('\n'.join(sum(extras, project['dependencies']))); \
open('environments.txt', 'w').write('\n'.join(sorted({names[name] for name in wanted - own})))"

# Out go the packages' tests (81 MB) and a second ONNX runtime, for C programs (29 MB); to a place of its own goes
# what of MMS only Java runs or starts. Its Python part stays: handlers written for MMS import it.
# Compiled modules stay: without them a worker's imports take 5 s instead of 2.
FROM tools AS server
COPY constraints.txt ./
COPY --from=wanted /src/server.txt ./
RUN python3 -m venv /opt/polyhost \
 && /opt/polyhost/bin/pip install -c constraints.txt -r server.txt \
 && cd /opt/polyhost/lib/python3*/site-packages \
 && find . \( -type d -name tests -o -name 'libonnxruntime.so.*' \) -prune -exec rm -r {} + \
 && cd /opt && tar -c --remove-files polyhost/bin/m*-model-server polyhost/lib/python3*/site-packages/mms/frontend/*.jar \
  | (mkdir -p /mms/opt && tar -C /mms/opt -x)

# The named environments that are wanted. Of Polyhost it needs the command that builds them, whose files seldom change;
# the rest is linked to where the layer above puts it. Of MMS environments need the worker's part, not the server.
FROM server AS environments
COPY container/polyhost/__init__.py container/polyhost/errors.py /builder/polyhost/
COPY container/polyhost/environments /builder/polyhost/environments
COPY handlers/polyhost_handlers/__init__.py handlers/polyhost_handlers/wheels.py /builder/polyhost_handlers/
COPY handlers/polyhost_handlers/environments /builder/polyhost_handlers/environments
COPY --from=wanted /src/environments.txt ./
RUN mkdir -p /opt/polyhost/envs; [ -s environments.txt ] || exit 0; \
    PYTHONPATH=/builder /opt/polyhost/bin/python -m polyhost.environments.commands build $(cat environments.txt) \
      --server-packages "$(echo /opt/polyhost/lib/python3*/site-packages)" \
 && cd /opt/polyhost/envs \
 && find . \( -type d -name tests -o -name model-server.jar \) -prune -exec rm -r {} +

# Polyhost itself, in a small layer of its own that is the only one to change with its code.
FROM server AS polyhost
COPY . .
RUN /opt/polyhost/bin/pip wheel --no-deps --wheel-dir dist . \
 && /opt/polyhost/bin/pip install --no-deps --prefix=/out/opt/polyhost dist/*.whl \
 && cd /out/opt/polyhost && ln -s lib/python3*/site-packages/polyhost/bin multi-model-server

# What both images have.
FROM base AS runtime
LABEL com.amazonaws.sagemaker.capabilities.multi-models=true \
      com.amazonaws.sagemaker.capabilities.accept-bind-to-port=true
COPY --from=server /opt/polyhost /opt/polyhost
COPY --from=environments /opt/polyhost/envs /opt/polyhost/envs
COPY scripts/docker-entrypoint /usr/local/bin/
# For --state-dir: a volume that is made here belongs to whom the server may run as.
RUN install -d -o 1000 -g 1000 /var/lib/polyhost
# ONNX Runtime reports its use to its makers unless it is told not to.
ENV PATH=/opt/polyhost/bin:$PATH LANG=C.UTF-8 POLYHOST_HOST=0.0.0.0 ORT_DISABLE_TELEMETRY=1
EXPOSE 8080
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s CMD ["/usr/bin/python3", "-IS", "-c", "\
import http.client, os, ssl; \
port = os.environ.get('POLYHOST_PORT') or os.environ.get('SAGEMAKER_BIND_TO_PORT') or '8080'; \
tls = os.environ.get('POLYHOST_TLS_CERT'); \
connection = http.client.HTTPSConnection('127.0.0.1', int(port), timeout=4, context=ssl._create_unverified_context()) \
  if tls else http.client.HTTPConnection('127.0.0.1', int(port), timeout=4); \
connection.request('GET', '/ping'); \
raise SystemExit(connection.getresponse().status != 200)"]
ENTRYPOINT ["/usr/local/bin/docker-entrypoint"]
CMD ["serve"]

# polyhost:native: no Java. The command `multi-model-server`, which the inference toolkit starts, is Polyhost's.
FROM runtime AS native
COPY --from=polyhost /out /
ENV PATH=/opt/polyhost/multi-model-server:$PATH POLYHOST_ENGINE=native

# polyhost:mms, which is built unless another is asked for: the real MMS and its Java, and the native engine as well.
FROM runtime AS mms
COPY --from=java /opt/java /opt/java
COPY --from=server /mms /
COPY --from=polyhost /out /
ENV PATH=$PATH:/opt/java/bin POLYHOST_ENGINE=mms

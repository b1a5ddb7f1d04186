# Polyhost on Debian 12. `docker build .`, or with frameworks of your choice:
#   docker build --build-arg EXTRAS=xgboost,sklearn,onnx,mxnet .
ARG BASE_IMAGE=debian:bookworm-slim

FROM ${BASE_IMAGE} AS base
RUN apt-get update \
 && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends \
      ca-certificates openjdk-17-jre-headless python3 \
 && rm -rf /var/lib/apt/lists/* /var/cache/apt /var/log/*

# What only the building needs. pip trusts what the base image trusts.
FROM base AS tools
ARG PIP_CERT=/etc/ssl/certs/ca-certificates.crt PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
RUN apt-get update \
 && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends python3-venv
WORKDIR /src

# The lists of packages to install, as files: images with other EXTRAS share the layers whose list is the same,
# and a change of Polyhost's own code keeps them all.
FROM tools AS wanted
ARG EXTRAS=xgboost,sklearn,onnx
COPY pyproject.toml .
COPY handlers/environments handlers/environments
RUN python3 -c "import sys, tomllib; \
project = tomllib.load(open('pyproject.toml', 'rb'))['project']; \
extras = set('$EXTRAS'.split(',')) - {''}; \
unknown = extras - {'xgboost', 'sklearn', 'onnx', 'mxnet'}; \
unknown and sys.exit('EXTRAS: no such framework: ' + ', '.join(sorted(unknown))); \
wanted = project['dependencies'] + [line for extra in sorted(extras - {'mxnet'}) for line in project['optional-dependencies'][extra]]; \
open('server.txt', 'w').write('\n'.join(wanted)); \
'mxnet' in extras or open('handlers/environments/mxnet.txt', 'w').close()"

FROM tools AS server
COPY constraints*.txt ./
COPY --from=wanted /src/server.txt .
RUN python3 -m venv /opt/polyhost \
 && /opt/polyhost/bin/pip install -c constraints.txt -r server.txt

FROM tools AS mxnet
COPY constraints*.txt ./
COPY --from=wanted /src/handlers/environments handlers/environments
RUN mkdir -p /opt/polyhost/envs; if [ -s handlers/environments/mxnet.txt ]; then \
    cd /opt/polyhost/envs && python3 -m venv mxnet \
 && mxnet/bin/pip install -r /src/handlers/environments/mxnet.txt; fi

FROM server AS polyhost
COPY --from=mxnet /opt/polyhost/envs /opt/polyhost/envs
COPY . .
RUN pip=/opt/polyhost/bin/pip && $pip wheel --no-deps -w dist . \
 && for python in /opt/polyhost /opt/polyhost/envs/*; do $python/bin/pip install --no-deps --prefix=/out$python dist/*.whl; done

FROM base
COPY --from=server /opt/polyhost /opt/polyhost
COPY --from=mxnet /opt/polyhost/envs /opt/polyhost/envs
COPY --from=polyhost /out /
COPY scripts/docker-entrypoint /usr/local/bin/
ENV PATH=/opt/polyhost/bin:$PATH POLYHOST_HOST=0.0.0.0

{{- /* Written by scripts/helm_haproxy.py from container/polyhost/fleet/haproxy.cfg: change that. */ -}}
{{- define "polyhost.haproxy" -}}
{{- $name := include "polyhost.name" . -}}
{{- $most := include "polyhost.most" . | int -}}
{{- $haproxy := .Values.router.haproxy -}}
# HAProxy (2.6 or later) in front of {{ $most }} Polyhosts, printed by `polyhost fleet haproxy`.
#
# Each model has a home: the server that its name leads to on a ring. A server keeps its place on the ring by its `id`,
# whatever its address is, so one that comes back finds its models on its disk. While a server is away, its models are
# at the next ones on the ring; all others stay where they are.

global
    log stdout format raw local0 info
    # At most 10,000 connections of clients, fewer where the process may not open as many files.
    fd-hard-limit 20100
    # What is sent to another server after an answer of 503, or after none, must still be here as a whole: larger requests
    # are sent again only where no connection came about.
    tune.bufsize 65536
    # A certificate `x.crt` has its key in `x.key`, or in its own file.
    ssl-load-extra-del-ext
    # SIGUSR1 ends HAProxy when its requests are answered, at the latest after this.
    hard-stop-after 90s

defaults
    mode http
    log global
    option httplog
    # Only what went wrong or was sent again: every request is in the servers' own access logs.
    option dontlog-normal
    timeout connect 1s
    # A model has 60 s to answer, and a request may wait for its load before.
    timeout client 150s
    timeout server 150s
    timeout http-request 30s
    timeout http-keep-alive 60s
    timeout queue 5s
    # In the form in which SageMaker's clients read errors.
    http-error status 502 content-type application/json hdr x-amzn-errortype ServiceUnavailable string '{"Message": "The server did not finish its answer. Ask again."}'
    http-error status 503 content-type application/json hdr x-amzn-errortype ServiceUnavailable hdr Retry-After 1 string '{"Message": "No server is ready to answer. Ask again."}'

# Servers' names are looked up again, since a name may come to mean another address.
resolvers names
    parse-resolv-conf
    accepted_payload_size 8192
    hold valid 2s
    hold nx 2s
    hold other 2s

frontend polyhost
    bind :8080{{ if $haproxy.tlsSecret }} ssl crt /tls/tls.crt{{ end }}
    # 1. Which model a request is for. InvokeEndpoint names an endpoint and a target; a target may begin with a slash.
    http-request set-var(txn.endpoint) path,field(3,/),url_dec if { path_beg /endpoints/ } { path_end /invocations }
    http-request set-var(txn.endpoint) str({{ .Values.endpointName }}) if { path /invocations } !{ url_param(model_name) -m found }
    http-request set-var(txn.target) req.hdr(X-Amzn-SageMaker-Target-Model),regsub(^/+,)
    http-request set-var(txn.model) var(txn.endpoint),concat(/,txn.target) if { var(txn.endpoint) -m found }
    #    Multi Model Server's own routes have the model in the path, or as a parameter.
    http-request set-var(txn.model) path,field(3,/),url_dec if { path_beg /models/ /predictions/ }
    http-request set-var(txn.model) path,field(2,/),url_dec if { path_reg ^/[^/]+/predict$ }
    http-request set-var(txn.model) url_param(model_name),url_dec if { path /invocations /models } { url_param(model_name) -m found }
    #    The Open Inference Protocol has the endpoint and the target in the path, then a version and what is asked.
    http-request set-var(txn.endpoint) path,field(4,/),url_dec if { path_beg /v2/models/ } { path_end /infer }
    http-request set-var(txn.model) path,regsub(^/v2/,),regsub(^repository/,),regsub(^models/,) if { path_beg /v2/models/ /v2/repository/models/ }
    http-request set-var(txn.model) var(txn.model),regsub(/infer$,),regsub(/ready$,),regsub(/load$,),regsub(/unload$,),regsub(/versions/[^/]+$,),url_dec if { path_beg /v2/models/ /v2/repository/models/ }
    http-request set-var(txn.model) var(txn.model),concat(/) if { path_beg /v2/models/ /v2/repository/models/ } !{ var(txn.model) -m sub / }

    # 2. How many copies it gets: one, and one more for each {{ $haproxy.copyAt }} requests/s{{ if gt (int $haproxy.replicas) 1 }} that {{ $haproxy.replicas }} HAProxies get together{{ end }}.
    #    Where that makes a quarter as many as there are servers, all of them take turns: two copies may share a server.
    http-request track-sc0 var(txn.model),xxh32 table rates if { var(txn.endpoint) -m found }
    http-request set-var(txn.copies) sc0_http_req_rate(rates),div({{ max 1 (round (divf (mulf $haproxy.copyAt 5) $haproxy.replicas) 0 | int) }}),add(1)
    http-request set-var(txn.copy) rand,mod(txn.copies)
    http-request set-var(txn.key) var(txn.model),concat(:,txn.copy) unless { var(txn.copies) -m int ge {{ max 2 (div (add $most 3) 4) }} }
    #    What Multi Model Server's API loads is where it was loaded: no copies. The dashboard's logins, too, are one server's.
    http-request set-var(txn.key) var(txn.model),concat(:0) unless { var(txn.endpoint) -m found }
    http-request set-var(txn.key) src if { path_beg /dashboard }

    use_backend predictions if { var(txn.endpoint) -m found }
    default_backend others

# Requests/s of each model, over 5 seconds.
backend rates
    stick-table type integer size 200k expire 30s store http_req_rate(5s)

# InvokeEndpoint. A prediction may be repeated: it is sent to another server where one does not take the connection, does
# not answer, or has no room (503). Never after 429: there the model is being loaded, and elsewhere that would begin anew.
backend predictions
    balance hash var(txn.key)
    hash-type consistent sdbm avalanche
    http-reuse safe
    retries 3
    option redispatch 1
    retry-on conn-failure empty-response 503
    # Only a request that has come as a whole can be sent again: without this, those would not be whose body comes behind.
    option http-buffer-request
    # /ready is 200 while a server can answer, and 503 from the first word of its end on.
    option httpchk
    http-check send meth GET uri /ready ver HTTP/1.1 hdr Host polyhost
    http-check expect status 200
    # weight 100: 1,600 points on the ring, which divide the models evenly. slowstart: one that comes back gets its models
    # bit by bit, so that it need not load all of them at once. Three connections that fail take a server out before the
    # next check does.
    default-server check inter 1s fastinter 250ms downinter 500ms fall 2 rise 2 weight 100 slowstart {{ $haproxy.slowStartSecs }}s observe layer4 error-limit 3 on-error mark-down resolvers names init-addr last,libc,none
    {{- range until $most }}
    server polyhost-{{ . }} {{ $name }}-{{ . }}.{{ $name }}-servers.{{ $.Release.Namespace }}.svc.cluster.local:8080 id {{ add1 . }}
    {{- end }}

# Everything else: Multi Model Server's routes, which answer 503 for a handler's exception too, and the control plane.
# These are sent again only where no connection came about. Without a model in its path, a request goes to any server.
backend others
    balance hash var(txn.key)
    hash-type consistent sdbm avalanche
    http-reuse safe
    retries 3
    option redispatch 1
    retry-on conn-failure
    default-server weight 100 slowstart {{ $haproxy.slowStartSecs }}s resolvers names init-addr last,libc,none
    {{- range until $most }}
    server polyhost-{{ . }} {{ $name }}-{{ . }}.{{ $name }}-servers.{{ $.Release.Namespace }}.svc.cluster.local:8080 id {{ add1 . }} track predictions/polyhost-{{ . }}
    {{- end }}

# For Prometheus, and for probes of HAProxy itself: http://…:8405/metrics and /ready. Not for clients.
frontend metrics
    bind :8405
    option dontlog-normal
    monitor-uri /ready
    monitor fail if { nbsrv(predictions) lt 1 }
    http-request use-service prometheus-exporter if { path /metrics }
{{- end }}

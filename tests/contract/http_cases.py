"""
The corpus of raw requests: well formed, odd and hostile ones, each under a name that the docs' table can use.

Two models are loaded: `noop` answers OK, `mirror` answers with what it was sent.
"""

from __future__ import annotations

from conftest import MODELS
from support.raw_http import Case

EOL = b"\r\n"
HOST = b"Host: here"


def head(line: bytes, *fields: bytes, host: bytes | None = HOST) -> bytes:
    return EOL.join([line, *([host] if host else []), *fields, b"", b""])


def get(target: bytes, *fields: bytes) -> bytes:
    return head(b"GET " + target + b" HTTP/1.1", *fields)


def post(target: bytes, body: bytes, *fields: bytes) -> bytes:
    return head(b"POST " + target + b" HTTP/1.1", b"Content-Length: %d" % len(body), *fields) + body


def invoke(body: bytes, *fields: bytes) -> bytes:
    return post(b"/models/mirror/invoke", body, *fields)


def chunked(body: bytes, *fields: bytes, target: bytes = b"/models/mirror/invoke") -> bytes:
    return head(b"POST " + target + b" HTTP/1.1", b"Transfer-Encoding: chunked", *fields) + body


def one(name: str, request: bytes) -> Case:
    return Case(name, (request,))


def doubtful(name: str, request: bytes) -> Case:
    """A request after which a server may wait for more."""
    return Case(name, (request,), may_be_silent=True)


def bytewise(data: bytes) -> tuple[bytes, ...]:
    return tuple(data[at : at + 1] for at in range(len(data)))


METHODS = tuple(
    Case(
        f"method-{method.decode().lower() if method.isupper() else 'in-small-letters'}-{name}",
        (head(method + b" " + target + b" HTTP/1.1"),),
        heads=(0,) if method == b"HEAD" else (),
        may_be_silent=method == b"CONNECT",
    )
    for name, target in (("ping", b"/ping"), ("models", b"/models"), ("unknown", b"/unknown"))
    for method in (
        b"GET", b"HEAD", b"PUT", b"DELETE", b"PATCH", b"OPTIONS", b"TRACE", b"CONNECT", b"PROPFIND", b"BREW", b"get",
    )
)  # fmt: skip

TARGETS = (
    one("target-root", get(b"/")),
    one("target-options-root", head(b"OPTIONS / HTTP/1.1")),
    one("target-asterisk-options", head(b"OPTIONS * HTTP/1.1")),
    one("target-asterisk-get", get(b"*")),
    one("target-absolute", get(b"http://here/ping")),
    one("target-absolute-other-host", get(b"http://elsewhere:81/ping")),
    one("target-absolute-https", get(b"https://here/ping")),
    one("target-absolute-no-path", get(b"http://here")),
    one("target-absolute-post", post(b"http://here/models/mirror/invoke", b"x")),
    one("target-absolute-query", get(b"http://here/models?limit=1")),
    one("target-authority", get(b"here:80")),
    one("target-no-slash", get(b"ping")),
    one("target-double-slash", get(b"//ping")),
    one("target-double-slash-inside", get(b"/models//mirror")),
    one("target-trailing-slash-ping", get(b"/ping/")),
    one("target-trailing-slash-models", get(b"/models/")),
    one("target-trailing-slash-model", get(b"/models/unknown/")),
    one("target-dot-segments", get(b"/models/../ping")),
    one("target-dot", get(b"/./ping")),
    one("target-escaped-letter", get(b"/%70ing")),
    one("target-escaped-slash", get(b"/models%2Fmirror")),
    one("target-escaped-slash-in-name", get(b"/models/a%2Fb")),
    one("target-escaped-space", get(b"/models/a%20b")),
    one("target-escaped-null", get(b"/models/a%00b")),
    one("target-escaped-utf8", get(b"/models/%E2%82%AC")),
    one("target-escaped-not-utf8", get(b"/models/%FF%FE")),
    one("target-escape-not-hex", get(b"/models/%zz")),
    one("target-escape-cut-off", get(b"/models/a%2")),
    one("target-percent-at-end", get(b"/models/a%")),
    one("target-plus", get(b"/models/a+b")),
    one("target-raw-utf8", get("/models/€".encode())),
    one("target-raw-high-byte", get(b"/models/\xff")),
    one("target-fragment", get(b"/ping#part")),
    one("target-semicolon", get(b"/ping;v=1")),
    one("target-query-on-ping", get(b"/ping?a=b")),
    one("target-query-empty", get(b"/ping?")),
    one("target-query-question-marks", get(b"/ping??a=?b")),
    one("target-case", get(b"/PING")),
    one("target-predictions", post(b"/predictions/mirror", b"x")),
    one("target-predictions-version", post(b"/predictions/mirror/1.0", b"x")),
    one("target-predict", post(b"/mirror/predict", b"x")),
    one("target-predictions-get", get(b"/predictions/mirror")),
    one("target-predictions-unknown", post(b"/predictions/unknown", b"x")),
    one("target-invocations", post(b"/invocations", b"x")),
    one("target-invocations-named", post(b"/invocations?model_name=mirror", b"x")),
    one("target-invocations-unknown", post(b"/invocations?model_name=unknown", b"x")),
    one("target-invoke-get", get(b"/models/mirror/invoke")),
    one("target-invoke-put", head(b"PUT /models/mirror/invoke HTTP/1.1", b"Content-Length: 1") + b"x"),
    one("target-invoke-unknown", post(b"/models/unknown/invoke", b"x")),
    one("target-invoke-no-name", post(b"/models//invoke", b"x")),
    one("target-invoke-trailing", post(b"/models/mirror/invoke/", b"x")),
    one("target-invoke-more", post(b"/models/mirror/invoke/now", b"x")),
    one("target-model-unknown", get(b"/models/unknown")),
    one("target-model-delete-unknown", head(b"DELETE /models/unknown HTTP/1.1")),
    one("target-model-put-unknown", head(b"PUT /models/unknown?min_worker=1 HTTP/1.1")),
    one("target-model-post", post(b"/models/unknown", b"")),
    one("target-model-patch", head(b"PATCH /models/mirror HTTP/1.1")),
    one("target-api-description", get(b"/api-description")),
    one("target-3500-bytes", get(b"/" + b"a" * 3500)),
    doubtful("target-9000-bytes", get(b"/" + b"a" * 9000)),
    doubtful("target-100000-bytes", get(b"/" + b"a" * 100_000)),
)

QUERIES = (
    one("query-limit-1", get(b"/models?limit=1")),
    one("query-limit-not-a-number", get(b"/models?limit=x")),
    one("query-limit-negative", get(b"/models?limit=-1")),
    one("query-limit-huge", get(b"/models?limit=99999999999999999999")),
    one("query-limit-twice", get(b"/models?limit=1&limit=2")),
    one("query-limit-empty", get(b"/models?limit=")),
    one("query-token", get(b"/models?next_page_token=1")),
    one("query-token-past-the-end", get(b"/models?next_page_token=99")),
    one("query-token-negative", get(b"/models?next_page_token=-1")),
    one("query-semicolons", get(b"/models?limit=1;next_page_token=1")),
    one("query-escapes", get(b"/models?%6Cimit=1")),
    one("query-broken-escape", get(b"/models?limit=%zz")),
    one("query-not-utf8", get(b"/models?limit=%ff")),
    one("query-plus", post(b"/invocations?model_name=a+b", b"x")),
    one("query-fields-reach-the-handler", post(b"/models/mirror/invoke?a=1&b=%20", b"x")),
    one("query-fields-twice", post(b"/models/mirror/invoke?a=1&a=2", b"x")),
    one("query-field-named-body", post(b"/models/mirror/invoke?body=1", b"x")),
    one("query-load-without-url", post(b"/models?model_name=a", b"")),
    one("query-load-batch-size-not-a-number", post(b"/models?url=/x&batch_size=x", b"")),
    one("query-load-nowhere", post(b"/models?url=/nowhere/at/all&model_name=a", b"")),
    one("query-load-runtime", post(b"/models?url=/x&runtime=cobol", b"")),
    one("query-scale-not-a-number", head(b"PUT /models/noop?min_worker=x&synchronous=true HTTP/1.1")),
    one("query-scale-max-below-min", head(b"PUT /models/noop?min_worker=2&max_worker=1 HTTP/1.1")),
)

VERSIONS = (
    one("version-1.0", head(b"GET /ping HTTP/1.0")),
    one("version-1.0-no-host", head(b"GET /ping HTTP/1.0", host=None)),
    one("version-1.0-keep-alive", head(b"GET /ping HTTP/1.0", b"Connection: keep-alive")),
    one("version-1.0-post", head(b"POST /models/mirror/invoke HTTP/1.0", b"Content-Length: 1") + b"x"),
    doubtful("version-1.0-chunked", head(b"POST /models/mirror/invoke HTTP/1.0", b"Transfer-Encoding: chunked")
             + b"1\r\nx\r\n0\r\n\r\n"),
    one("version-1.1-close", get(b"/ping", b"Connection: close")),
    one("version-1.1-close-post", invoke(b"x", b"Connection: close")),
    one("version-1.1-close-case", get(b"/ping", b"Connection: CLOSE")),
    one("version-1.1-close-among", get(b"/ping", b"Connection: keep-alive, close")),
    one("version-1.1-close-twice", get(b"/ping", b"Connection: keep-alive", b"Connection: close")),
    doubtful("version-0.9", b"GET /ping\r\n\r\n"),
    doubtful("version-1.2", head(b"GET /ping HTTP/1.2")),
    doubtful("version-2.0", head(b"GET /ping HTTP/2.0")),
    doubtful("version-3.7", head(b"GET /ping HTTP/3.7")),
    doubtful("version-lower-case", head(b"GET /ping http/1.1")),
    doubtful("version-other", head(b"GET /ping SIP/2.0")),
    doubtful("version-long", head(b"GET /ping HTTP/1.1111111")),
    doubtful("version-http2-preface", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
)  # fmt: skip

LINES = (
    one("line-two-spaces", head(b"GET  /ping HTTP/1.1")),
    doubtful("line-space-at-end", head(b"GET /ping HTTP/1.1 ")),
    doubtful("line-space-first", head(b" GET /ping HTTP/1.1")),
    doubtful("line-tab", head(b"GET\t/ping\tHTTP/1.1")),
    doubtful("line-space-in-target", head(b"GET /models/a b HTTP/1.1")),
    doubtful("line-method-only", b"GET\r\n\r\n"),
    doubtful("line-control-in-method", head(b"G\x01ET /ping HTTP/1.1")),
    doubtful("line-control-in-target", head(b"GET /pi\x01ng HTTP/1.1")),
    doubtful("line-null-in-target", head(b"GET /pi\x00ng HTTP/1.1")),
    doubtful("line-long-method", head(b"A" * 100 + b" /ping HTTP/1.1")),
    one("line-empty-lines-before", b"\r\n\r\n" + get(b"/ping")),
    doubtful("line-lf-before", b"\n\n" + get(b"/ping")),
    doubtful("line-lf-only", b"GET /ping HTTP/1.1\nHost: here\n\n"),
    doubtful("line-lf-in-fields", b"GET /ping HTTP/1.1\r\nHost: here\nA: b\r\n\r\n"),
    doubtful("line-cr-only", b"GET /ping HTTP/1.1\rHost: here\r\r"),
    doubtful("line-tls-hello", b"\x16\x03\x01\x00\xa5\x01\x00\x00\xa1\x03\x03" + bytes(160)),
    doubtful("line-binary", bytes(range(256))),
    doubtful("line-words", b"hello, is there anybody?\r\n\r\n"),
    Case("line-one-byte-at-a-time", bytewise(get(b"/ping", b"A: b"))),
    Case("line-cut-in-two", (b"GET /pi", b"ng HTTP/1.1\r\nHo", b"st: here\r\n\r", b"\n")),
)

FIELDS = (
    one("field-no-host", head(b"GET /ping HTTP/1.1", host=None)),
    one("field-two-hosts", get(b"/ping", b"Host: there")),
    one("field-empty-host", head(b"GET /ping HTTP/1.1", host=b"Host:")),
    one("field-odd-host", head(b"GET /ping HTTP/1.1", host=b"Host: a b/c@d")),
    one("field-empty-value", invoke(b"x", b"X-Empty:")),
    one("field-spaces-around-value", invoke(b"x", b"X-Spaces: \t a b \t ")),
    one("field-no-space-before-value", invoke(b"x", b"X-Tight:a")),
    one("field-case", invoke(b"x", b"x-LOWER-Upper: A")),
    one("field-twice", invoke(b"x", b"X-Twice: 1", b"X-Twice: 2")),
    one("field-high-bytes", invoke(b"x", b"X-High: caf\xe9")),
    one("field-utf8", invoke(b"x", "X-Utf8: €".encode())),
    one("field-tab-in-value", invoke(b"x", b"X-Tab: a\tb")),
    one("field-colon-in-value", invoke(b"x", b"X-Colon: a:b")),
    one("field-quotes", invoke(b"x", b'X-Quoted: "a, b"')),
    doubtful("field-space-before-colon", invoke(b"x", b"X-Space : a")),
    doubtful("field-space-in-name", invoke(b"x", b"X Space: a")),
    doubtful("field-no-colon", get(b"/ping", b"nonsense")),
    doubtful("field-empty-name", get(b"/ping", b": a")),
    doubtful("field-odd-name", get(b"/ping", b"X(a): b")),
    doubtful("field-high-byte-in-name", get(b"/ping", b"X\xe9: b")),
    doubtful("field-null-in-value", get(b"/ping", b"A: b\x00c")),
    doubtful("field-control-in-value", get(b"/ping", b"A: b\x01c")),
    doubtful("field-cr-in-value", get(b"/ping", b"A: b\rc")),
    doubtful("field-folded", get(b"/ping", b"A: b", b" c")),
    doubtful("field-folded-first", head(b"GET /ping HTTP/1.1", host=b" Host: here")),
    one("field-value-4000-bytes", get(b"/ping", b"A: " + b"a" * 4000)),
    doubtful("field-value-9000-bytes", get(b"/ping", b"A: " + b"a" * 9000)),
    doubtful("field-value-70000-bytes", get(b"/ping", b"A: " + b"a" * 70_000)),
    one("field-90-fields", get(b"/ping", *(b"A%d: b" % n for n in range(90)))),
    doubtful("field-1000-fields", get(b"/ping", *(b"A%d: b" % n for n in range(1000)))),
    doubtful("field-10000-fields", get(b"/ping", *(b"A%d: bcdef" % n for n in range(10_000)))),
    one("field-origin", get(b"/ping", b"Origin: http://elsewhere.example")),
    one("field-request-id-of-client", invoke(b"x", b"X-Request-Id: mine")),
    one("field-range", get(b"/ping", b"Range: bytes=0-1")),
    one("field-if-none-match", get(b"/ping", b"If-None-Match: *")),
    one("field-accept-encoding", get(b"/ping", b"Accept-Encoding: gzip, br")),
    one("field-authorization", invoke(b"x", b"Authorization: Basic YTpi")),
)

LENGTHS = (
    one("length-zero", invoke(b"")),
    one("length-missing-on-post", head(b"POST /models/mirror/invoke HTTP/1.1")),
    one("length-on-get", head(b"GET /ping HTTP/1.1", b"Content-Length: 3") + b"abc"),
    one("length-on-delete", head(b"DELETE /models/unknown HTTP/1.1", b"Content-Length: 3") + b"abc"),
    Case("length-on-head", (head(b"HEAD /ping HTTP/1.1", b"Content-Length: 0"),), heads=(0,)),
    one("length-zeros-first", head(b"POST /models/mirror/invoke HTTP/1.1", b"Content-Length: 0003") + b"abc"),
    doubtful("length-plus", head(b"POST /models/mirror/invoke HTTP/1.1", b"Content-Length: +3") + b"abc"),
    doubtful("length-negative", head(b"POST /models/mirror/invoke HTTP/1.1", b"Content-Length: -3") + b"abc"),
    doubtful("length-not-a-number", head(b"POST /models/mirror/invoke HTTP/1.1", b"Content-Length: x") + b"abc"),
    doubtful("length-empty", head(b"POST /models/mirror/invoke HTTP/1.1", b"Content-Length:") + b"abc"),
    doubtful("length-hexadecimal", head(b"POST /models/mirror/invoke HTTP/1.1", b"Content-Length: 0x3") + b"abc"),
    doubtful("length-fraction", head(b"POST /models/mirror/invoke HTTP/1.1", b"Content-Length: 3.0") + b"abc"),
    doubtful("length-two-numbers", head(b"POST /models/mirror/invoke HTTP/1.1", b"Content-Length: 3, 3") + b"abc"),
    doubtful("length-twice-alike", head(b"POST /models/mirror/invoke HTTP/1.1", b"Content-Length: 3",
                                        b"Content-Length: 3") + b"abc"),
    doubtful("length-twice-different", head(b"POST /models/mirror/invoke HTTP/1.1", b"Content-Length: 3",
                                            b"Content-Length: 5") + b"abcde"),
    doubtful("length-beyond-64-bits", head(b"POST /models/mirror/invoke HTTP/1.1", b"Content-Length: " + b"9" * 30)
             + b"abc"),
    doubtful("length-too-large", head(b"POST /models/mirror/invoke HTTP/1.1", b"Content-Length: 20000000") + b"abc"),
    doubtful("length-too-large-get", head(b"GET /ping HTTP/1.1", b"Content-Length: 20000000") + b"abc"),
    doubtful("length-longer-than-body", head(b"POST /models/mirror/invoke HTTP/1.1", b"Content-Length: 10") + b"abc"),
    doubtful("length-shorter-than-body", head(b"POST /models/mirror/invoke HTTP/1.1", b"Content-Length: 3")
             + b"abcdef"),
    one("length-6553500", invoke(b"a" * 6_553_500)),
    doubtful("length-6553501", invoke(b"a" * 6_553_501)),
    Case("length-body-later", (head(b"POST /models/mirror/invoke HTTP/1.1", b"Content-Length: 3"), b"abc")),
    Case("length-body-bytewise", (head(b"POST /models/mirror/invoke HTTP/1.1", b"Content-Length: 9"),
                                  *bytewise(b"abcdefghi"))),
    one("length-binary-body", invoke(bytes(range(60)))),
)  # fmt: skip

CHUNKS = (
    one("chunked", chunked(b"3\r\nabc\r\n0\r\n\r\n")),
    one("chunked-empty", chunked(b"0\r\n\r\n")),
    one("chunked-several", chunked(b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n")),
    one("chunked-upper-case-size", chunked(b"A\r\n0123456789\r\n0\r\n\r\n")),
    one("chunked-zeros-first", chunked(b"0003\r\nabc\r\n000\r\n\r\n")),
    one("chunked-extension", chunked(b"3;a=b\r\nabc\r\n0;c\r\n\r\n")),
    one("chunked-extension-quoted", chunked(b'3;a="b c"\r\nabc\r\n0\r\n\r\n')),
    doubtful("chunked-extension-long", chunked(b"3;" + b"a" * 20_000 + b"\r\nabc\r\n0\r\n\r\n")),
    one("chunked-trailers", chunked(b"3\r\nabc\r\n0\r\nX-After: b\r\n\r\n", b"Trailer: X-After")),
    one("chunked-trailer-content-length", chunked(b"3\r\nabc\r\n0\r\nContent-Length: 9\r\n\r\n")),
    doubtful("chunked-trailer-long", chunked(b"3\r\nabc\r\n0\r\nX-After: " + b"a" * 70_000 + b"\r\n\r\n")),
    one("chunked-json", chunked(b'7\r\n{"a":1}\r\n0\r\n\r\n', b"Content-Type: application/json")),
    one("chunked-load", chunked(b'10\r\n{"url": "/none"}\r\n0\r\n\r\n', b"Content-Type: application/json",
                                target=b"/models")),
    one("chunked-get", head(b"GET /ping HTTP/1.1", b"Transfer-Encoding: chunked") + b"3\r\nabc\r\n0\r\n\r\n"),
    one("chunked-case", head(b"POST /models/mirror/invoke HTTP/1.1", b"Transfer-Encoding: Chunked")
        + b"3\r\nabc\r\n0\r\n\r\n"),
    doubtful("chunked-and-length", chunked(b"3\r\nabc\r\n0\r\n\r\n", b"Content-Length: 3")),
    # Two requests in one piece: like those of PIPELINES, MMS answers the second with or without an x-request-id.
    Case("chunked-and-length-smuggled",
         (chunked(b"0\r\n\r\n" + get(b"/models/smuggled"), b"Content-Length: 5"),), may_be_silent=True, is_raced=True),
    doubtful("chunked-twice", chunked(b"3\r\nabc\r\n0\r\n\r\n", b"Transfer-Encoding: chunked")),
    doubtful("chunked-after-identity", head(b"POST /models/mirror/invoke HTTP/1.1",
                                            b"Transfer-Encoding: identity, chunked") + b"3\r\nabc\r\n0\r\n\r\n"),
    doubtful("chunked-after-gzip", head(b"POST /models/mirror/invoke HTTP/1.1", b"Transfer-Encoding: gzip, chunked")
             + b"3\r\nabc\r\n0\r\n\r\n"),
    doubtful("chunked-not-last", head(b"POST /models/mirror/invoke HTTP/1.1", b"Transfer-Encoding: chunked, gzip")
             + b"3\r\nabc\r\n0\r\n\r\n"),
    doubtful("chunked-unknown-coding", head(b"POST /models/mirror/invoke HTTP/1.1", b"Transfer-Encoding: xchunked")
             + b"3\r\nabc\r\n0\r\n\r\n"),
    doubtful("chunked-identity", head(b"POST /models/mirror/invoke HTTP/1.1", b"Transfer-Encoding: identity",
                                      b"Content-Length: 3") + b"abc"),
    doubtful("chunked-field-obscured", head(b"POST /models/mirror/invoke HTTP/1.1", b"Transfer-Encoding : chunked",
                                            b"Content-Length: 13") + b"3\r\nabc\r\n0\r\n\r\n"),
    doubtful("chunked-size-not-hex", chunked(b"x\r\nabc\r\n0\r\n\r\n")),
    doubtful("chunked-size-negative", chunked(b"-3\r\nabc\r\n0\r\n\r\n")),
    doubtful("chunked-size-prefixed", chunked(b"0x3\r\nabc\r\n0\r\n\r\n")),
    doubtful("chunked-size-space", chunked(b"3 \r\nabc\r\n0\r\n\r\n")),
    doubtful("chunked-size-empty", chunked(b"\r\nabc\r\n0\r\n\r\n")),
    doubtful("chunked-size-huge", chunked(b"f" * 16 + b"\r\nabc\r\n0\r\n\r\n")),
    doubtful("chunked-size-beyond-64-bits", chunked(b"1" + b"0" * 16 + b"\r\nabc\r\n0\r\n\r\n")),
    doubtful("chunked-longer-than-said", chunked(b"2\r\nabc\r\n0\r\n\r\n")),
    doubtful("chunked-shorter-than-said", chunked(b"5\r\nabc\r\n0\r\n\r\n")),
    doubtful("chunked-lf-only", chunked(b"3\nabc\n0\n\n")),
    doubtful("chunked-no-end", chunked(b"3\r\nabc\r\n")),
    doubtful("chunked-too-large", chunked(b"640000\r\n" + b"a" * 0x640000 + b"\r\n0\r\n\r\n")),
    Case("chunked-bytewise", (chunked(b""), *bytewise(b"3;x=y\r\nabc\r\n0\r\nB: c\r\n\r\n"))),
)  # fmt: skip

EXPECTATIONS = (
    Case("expect-continue", (head(b"POST /models/mirror/invoke HTTP/1.1", b"Content-Length: 3",
                                  b"Expect: 100-continue"), b"abc"), answers=2, waits_to_send=True),
    doubtful("expect-continue-without-body-yet", head(b"POST /models/mirror/invoke HTTP/1.1", b"Content-Length: 3",
                                                      b"Expect: 100-continue")),
    Case("expect-continue-case", (head(b"POST /models/mirror/invoke HTTP/1.1", b"Content-Length: 3",
                                       b"expect: 100-Continue"), b"abc"), answers=2, waits_to_send=True),
    Case("expect-continue-chunked", (chunked(b"", b"Expect: 100-continue"), b"3\r\nabc\r\n0\r\n\r\n"), answers=2,
         waits_to_send=True),
    Case("expect-continue-empty-body", (invoke(b"", b"Expect: 100-continue"),), answers=2, may_be_silent=True),
    doubtful("expect-continue-too-large", head(b"POST /models/mirror/invoke HTTP/1.1", b"Content-Length: 20000000",
                                               b"Expect: 100-continue")),
    doubtful("expect-continue-1.0", head(b"POST /models/mirror/invoke HTTP/1.0", b"Content-Length: 3",
                                         b"Expect: 100-continue") + b"abc"),
    doubtful("expect-other", invoke(b"x", b"Expect: the unexpected")),
)  # fmt: skip

UPGRADES = (
    one("upgrade-h2c", get(b"/ping", b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c",
                           b"HTTP2-Settings: AAMAAABkAAQAAP__")),
    one("upgrade-h2c-with-body", invoke(b"abc", b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c",
                                        b"HTTP2-Settings: AAMAAABkAAQAAP__")),
    Case("upgrade-h2c-body-later", (head(b"POST /models/mirror/invoke HTTP/1.1", b"Content-Length: 3",
                                         b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c",
                                         b"HTTP2-Settings: AAMAAABkAAQAAP__"), b"a", b"b", b"c")),
    one("upgrade-websocket", get(b"/ping", b"Connection: Upgrade", b"Upgrade: websocket",
                                 b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==", b"Sec-WebSocket-Version: 13")),
    one("upgrade-unknown", get(b"/ping", b"Connection: Upgrade", b"Upgrade: x")),
    one("upgrade-without-connection", get(b"/ping", b"Upgrade: h2c")),
    one("upgrade-chunked", chunked(b"3\r\nabc\r\n0\r\n\r\n", b"Connection: Upgrade", b"Upgrade: h2c")),
)  # fmt: skip

PIPELINES = (
    Case("pipeline-two", (get(b"/ping") + get(b"/models/unknown"),), answers=2, is_raced=True),
    Case("pipeline-three-invokes", (invoke(b"1") + invoke(b"2") + invoke(b"3"),), answers=3, is_raced=True),
    Case("pipeline-invoke-then-ping", (invoke(b"1") + get(b"/ping"),), answers=2, is_raced=True),
    Case("pipeline-ping-then-invoke", (get(b"/ping") + invoke(b"1"),), answers=2, is_raced=True),
    Case("pipeline-close-first", (get(b"/ping", b"Connection: close") + get(b"/ping"),), is_raced=True),
    Case("pipeline-error-first", (post(b"/models/unknown/invoke", b"x") + get(b"/ping"),), is_raced=True),
    Case("pipeline-chunked-then-ping", (chunked(b"1\r\n1\r\n0\r\n\r\n") + get(b"/ping"),), answers=2, is_raced=True),
    Case("pipeline-head-then-get", (head(b"HEAD /ping HTTP/1.1") + get(b"/ping"),), answers=2, heads=(0,),
         is_raced=True),
    Case("pipeline-broken-second", (get(b"/ping") + b"nonsense\r\n\r\n",), answers=2, may_be_silent=True,
         is_raced=True),
    Case("pipeline-upgrade-first", (get(b"/ping", b"Connection: Upgrade", b"Upgrade: h2c") + get(b"/ping"),),
         answers=2, may_be_silent=True, is_raced=True),
)  # fmt: skip

CONTENT_TYPES = tuple(
    one(f"type-{name}", invoke(body, *([b"Content-Type: " + content_type] if content_type is not None else [])))
    for name, content_type, body in (
        ("none", None, b"abc"),
        ("empty", b"", b"abc"),
        ("text", b"text/plain; charset=utf-8", b"abc"),
        ("csv", b"text/csv", b"1,2"),
        ("json", b"application/json", b'{"a": 1}'),
        ("json-broken", b"application/json", b"{"),
        ("json-charset", b"application/json; charset=latin-1", b'"\xe9"'),
        ("binary", b"application/octet-stream", bytes(4)),
        ("form", b"application/x-www-form-urlencoded", b"a=1&b=%20&a=2"),
        ("multipart", b"multipart/form-data; boundary=b",
         b'--b\r\nContent-Disposition: form-data; name="f"\r\n\r\nv\r\n--b--\r\n'),
        ("multipart-file", b"multipart/form-data; boundary=b",
         b'--b\r\nContent-Disposition: form-data; name="d"; filename="x"\r\nContent-Type: a/b\r\n\r\nv\r\n--b--\r\n'),
        ("multipart-no-boundary", b"multipart/form-data", b"abc"),
        ("multipart-cut-off", b"multipart/form-data; boundary=b",
         b'--b\r\nContent-Disposition: form-data; name="f"\r\n\r\nv'),
        ("nonsense", b"nonsense", b"abc"),
    )
)  # fmt: skip

LOADS = tuple(
    one(f"load-{name}", post(b"/models", body, *([b"Content-Type: " + content_type] if content_type else [])))
    for name, content_type, body in (
        ("empty", b"application/json", b""),
        ("no-url", b"application/json", b"{}"),
        ("broken-json", b"application/json", b"{"),
        ("json-list", b"application/json", b"[]"),
        ("json-null", b"application/json", b"null"),
        ("json-url-number", b"application/json", b'{"url": 1}'),
        (
            "json-name-taken",
            b"application/json",
            b'{"url": "%b/noop-v1.0", "model_name": "noop"}' % str(MODELS).encode(),
        ),
        ("json-without-type", b"", b'{"url": "/none"}'),
        ("json-batch-size-text", b"application/json", b'{"url": "/none", "batch_size": "x"}'),
        ("json-nested", b"application/json", b"[" * 5000),
        ("form", b"application/x-www-form-urlencoded", b"url=/none"),
    )
)

CASES = (
    *METHODS, *TARGETS, *QUERIES, *VERSIONS, *LINES, *FIELDS, *LENGTHS, *CHUNKS, *EXPECTATIONS, *UPGRADES, *PIPELINES,
    *CONTENT_TYPES, *LOADS,
)  # fmt: skip

"""
AWS's query protocol: a form comes, XML goes.

Codes are AWS's, so that boto3 raises what it raises there: this protocol has names of its own for what is the same.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from urllib.parse import parse_qsl
from xml.sax.saxutils import escape

from polyhost.api.http import Reply, with_retry_after
from polyhost.service_errors import EndpointError, ValidationError

_HEADERS = ((b"content-type", b"text/xml"),)
_NOT_IN_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_CODES = {
    "AccessDeniedException": "AccessDenied",
    "ExpiredTokenException": "ExpiredToken",
    "IncompleteSignatureException": "IncompleteSignature",
    "InvalidSignatureException": "SignatureDoesNotMatch",
    "MissingAuthenticationTokenException": "MissingAuthenticationToken",
    "ThrottlingException": "Throttling",
    "UnrecognizedClientException": "InvalidClientTokenId",
}


def form_of(body: bytes, most_fields: int) -> dict[str, str]:
    """Raises ValidationError."""
    try:
        pairs = parse_qsl(body.decode(), keep_blank_values=True, max_num_fields=most_fields)
    except ValueError:
        raise ValidationError(f"The body is not a form of at most {most_fields} fields in UTF-8.") from None
    form = dict(pairs)
    if len(form) < len(pairs):
        raise ValidationError("The body names a field twice.")
    return form


def code_of(error: EndpointError) -> str:
    return _CODES.get(error.type, error.type)


def blame(error: EndpointError) -> str:
    return "Receiver" if error.status >= 500 else "Sender"


def elements(texts: Mapping[str, str]) -> str:
    return "".join(element(name, text) for name, text in texts.items())


def element(name: str, text: str) -> str:
    return f"<{name}>{escape(_NOT_IN_XML.sub('?', text))}</{name}>"


def answer_reply(namespace: str, action: str, fields: str, request_id: str) -> Reply:
    document = (
        f'<{action}Response xmlns="{namespace}"><{action}Result>{fields}</{action}Result>'
        f"<ResponseMetadata>{element('RequestId', request_id)}</ResponseMetadata></{action}Response>\n"
    )
    return _reply(document, 200, request_id)


def error_reply(namespace: str, error: EndpointError, request_id: str) -> Reply:
    fields = elements({"Type": blame(error), "Code": code_of(error), "Message": error.message})
    document = (
        f'<ErrorResponse xmlns="{namespace}"><Error>{fields}</Error>'
        f"{element('RequestId', request_id)}</ErrorResponse>\n"
    )
    return with_retry_after(_reply(document, error.status, request_id), error)


def _reply(document: str, status: int, request_id: str) -> Reply:
    return Reply(document.encode(), status, _HEADERS, b"x-amzn-RequestId: %b\r\n" % request_id.encode())

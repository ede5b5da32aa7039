"""What a request must look like before the broker thinks about it: bean validation with its patterns. Pure.

Patterns are Java's, matched over the whole text. What is wrong is told as ``field : message, ...`` (code 17); JSON that
does not fit the bean's types cannot be parsed (code 15).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from testbed.ddhub.replies import Json, Refused, invalid

NO_SPECIAL = r"""(?:&(#\d+;|#x[0-9A-Fa-f]+;|lt;|gt;|quot;|amp;)|[^&<>"'/\\\-\.\u0008\u000C\u000A\u000D\u0009])*"""
UUID4 = r"[0-9a-fA-F]{8}\-[0-9a-fA-F]{4}\-4[0-9a-fA-F]{3}\-[89abAB][0-9a-fA-F]{3}\-[0-9a-fA-F]{12}"
SEMVER = r"\d+\.\d+\.\d+(-[0-9A-Za-z-.]+)?(\+[0-9A-Za-z-.]+)?"
HEX = r"[0-9a-fA-F]+"
CLIENT_ID = r"[a-zA-Z0-9\-:.>*]+"
KEY_CLIENT_ID = r"[a-zA-Z0-9\-:]+"
OWNER = r".+\.ewc"
FILE_NAME = r"(?i).*\.(csv|tsv)"
NO_DID = r"(?!(did|DID|dID|dId|DiD|DId|Did):).+(\w*)"
IS_DID = r"(did|DID|dID|dId|DiD|DId|Did):.+(\w*)"
_MOMENT = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)\.\d{3}(Z|[+-]\d\d(:?\d\d)?)")


def fits(pattern: str, text: str) -> bool:
    """Whether the whole text is of this form."""
    return re.fullmatch(pattern, text, re.ASCII) is not None


@dataclass(frozen=True, slots=True)
class Field:
    """One property: a text of ``least`` to ``most`` characters, or ``many`` of them: up to ``count``."""

    name: str
    pattern: str | None = None
    required: bool = False
    many: bool = False
    least: int = 0
    most: int = 1 << 30
    count: int = 1 << 30
    message: str = "invalid"

    def problem(self, value: Any) -> str | None:
        """What is wrong with it; None if nothing is. Raises Refused (15) if it is no text."""
        if value is None:
            return f"{self.name} : must not be null" if self.required else None
        if not isinstance(value, list if self.many else str):
            raise Refused(400, "15", f"Unable to deserialize property '{self.name}'")
        texts: list[Any] = value if isinstance(value, list) else [value]
        if not all(isinstance(text, str) for text in texts):
            raise Refused(400, "15", f"Unable to deserialize property '{self.name}'")
        if self.required and not value:
            return f"{self.name} : must not be empty"
        if len(texts) > self.count:
            return f"{self.name} : size must be between 0 and {self.count}"
        for text in texts:
            if not self.least <= len(text) <= self.most:
                return f"{self.name} : size must be between {self.least} and {self.most}"
            if self.pattern is not None and not fits(self.pattern, text):
                return f"{self.name} : {self.message}"
        return None


MESSAGE = (
    Field("fqcns", many=True, most=200),
    Field("anonymousRecipient", many=True, least=1, most=255, count=25),
    Field("transactionId", most=200),
    Field("initiatingMessageId", most=200),
    Field("initiatingTransactionId", most=200),
    Field("topicRestrictions", most=500),
    Field("clientGatewayMessageId", UUID4, required=True, most=200, message="Required UUID v4 format"),
    Field("payload", required=True),
    Field("topicId", HEX, required=True, most=1024, message="Required Hexdecimal string"),
    Field("topicVersion", SEMVER, required=True, message="Required Semantic Version format"),
    Field("signature", NO_SPECIAL, required=True, message="Special characters are not allowed"),
)
UPLOAD = (
    Field("fileName", FILE_NAME, required=True, message="Only support file csv and tsv"),
    Field("fqcns", many=True, required=True, most=200),
    Field("signature", NO_SPECIAL, required=True, message="Special characters are not allowed"),
    Field("topicId", HEX, required=True, most=200, message="Required Hexdecimal string"),
    Field("topicVersion", SEMVER, required=True, message="Required Semantic Version format"),
    Field("clientGatewayMessageId", UUID4, required=True, most=200, message="Required UUID v4 format"),
    Field("transactionId", most=200),
)
KEY = (
    Field("fqcn", required=True, most=200),
    Field("clientGatewayMessageId", required=True, most=200),
    Field("payload", required=True),
)
SEARCH = (
    Field("fqcnTopicList", HEX, required=True, many=True, message="Required Hexdecimal string"),
    Field("senderId", required=True, many=True),
    Field("topicId", HEX, many=True, message="Required Hexdecimal string"),
    Field("clientId", CLIENT_ID, most=247, message="Required Alphanumeric string"),
    Field("from"),
    Field("anonymousRecipient", NO_DID, message="Do not allow DID format"),
)
KEY_SEARCH = (
    Field("clientId", KEY_CLIENT_ID, most=247, message="Required Alphanumeric string"),
    Field("senderId", many=True),
    Field("from"),
)
ACK = (
    Field("messageIds", required=True, many=True),
    Field("clientId", CLIENT_ID, most=247, message="Required Alphanumeric string"),
    Field("from"),
    Field("anonymousRecipient", NO_DID, message="Do not allow DID format"),
)
CLIENT_IDS = (Field("clientIds", NO_SPECIAL, required=True, many=True, message="Special characters are not allowed"),)
TOPIC = (
    Field("name", NO_SPECIAL, required=True, message="Special characters are not allowed"),
    Field("schemaType", "JSD7|XSD6|XML|CSV|TSV", required=True, message="Required JSD7, XSD6, XML, CSV or TSV"),
    Field("schema", required=True),
    Field("version", SEMVER, required=True, message="Required Semantic Version format"),
    Field("owner", OWNER, required=True, message="Required format with suffix .ewc"),
    Field("tags", NO_SPECIAL, many=True, message="Special characters are not allowed"),
)
TOPIC_TAGS = (Field("tags", NO_SPECIAL, many=True, message="Special characters are not allowed"),)
TOPIC_VERSION = (Field("schema", required=True),)


def is_json(headers: Mapping[str, str]) -> bool:
    """Whether a request calls its body JSON."""
    return headers.get("content-type", "").partition(";")[0].strip().lower() == "application/json"


def parsed(body: bytes) -> Json:
    """The JSON object of a body. Raises Refused (15)."""
    try:
        value = json.loads(body, parse_constant=_refuse)
    except ValueError as error:
        raise Refused(400, "15", f"Cannot parse JSON: {error}") from None
    if not isinstance(value, dict):
        raise Refused(400, "15", "Cannot parse JSON: an object is needed")
    return value


def _refuse(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def validate(fields: Sequence[Field], body: Json) -> None:
    """Raise Refused (17) with all that is wrong."""
    problems = [problem for each in fields if (problem := each.problem(body.get(each.name))) is not None]
    if problems:
        raise invalid(", ".join(problems))


def flag(body: Json, name: str) -> bool:
    """A boolean, also as text; False if it is absent. Raises Refused (15)."""
    value = body.get(name)
    if value in (None, False, True):
        return bool(value)
    if isinstance(value, str):
        return value.lower() == "true"
    raise Refused(400, "15", f"Unable to deserialize property '{name}'")


def number(body: Json, name: str, default: int) -> int:
    """An integer. Raises Refused (15)."""
    value = body.get(name)
    if value is None:
        return default
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    raise Refused(400, "15", f"Unable to deserialize property '{name}'")


def since(body: Json) -> int | None:
    """``from`` in whole seconds since 1970; its offset is read over. Raises Refused (17)."""
    text = body.get("from")
    if text is None:
        return None
    found = _MOMENT.fullmatch(text)
    try:
        if found is not None:
            return int(datetime.fromisoformat(found[1]).replace(tzinfo=UTC).timestamp())
    except ValueError:
        pass
    raise invalid("from : Required format yyyy-MM-dd'T'HH:mm:ss.SSSX")

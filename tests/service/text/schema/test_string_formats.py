import datetime as dt
import ipaddress
import json
import random
import uuid

import jsonschema
import pytest

from service.text.schema import string_formats
from tests.service.text.schema.grammar_checks import accepts, compile_schema, random_output

VALID = {
    "date-time": ["2024-02-29T23:59:59Z", "2025-01-31T00:00:00.123+05:30"],
    "date": ["2000-02-29", "0001-01-01", "9999-12-31"],
    "time": ["00:00:00Z", "23:59:59.5-11:00"],
    "duration": ["P1Y2M3DT4H5M6S", "PT30S", "P4W", "P1D"],
    "email": ["a@example.com", "first.last+tag@sub.example.org"],
    "hostname": ["localhost", "a-b.example.com"],
    "ipv4": ["0.1.0.9", "255.255.255.255"],
    "ipv6": ["::", "::1", "2001:db8::ff00:42:8329", "1:2:3:4:5:6:7:8", "::ffff:192.0.2.1"],
    "uuid": ["123e4567-e89b-12d3-a456-426614174000"],
    "uri": ["https://example.com/a?b=c#d", "urn:isbn:123", "mailto:a@b.c", "file:///etc/hosts"],
}
INVALID = {
    "date-time": [
        "2023-02-29T00:00:00Z",
        "2024-01-01",
        "2024-01-01T24:00:00Z",
        "2024-01-01 00:00Z",
    ],
    "date": ["1900-02-29", "2024-04-31", "2024-00-10", "24-01-01", "0000-01-01"],
    "time": ["24:00:00Z", "12:60:00Z", "12:00"],
    "duration": ["P", "PT", "1D", "P1S"],
    "email": ["a", "a@", "@b.c", "a b@c.de"],
    "hostname": ["-a", "a..b", "a_b", ""],
    "ipv4": ["256.0.0.1", "1.2.3", "01.2.3.4"],
    "ipv6": [":::", "1:2:3", "1::2::3", "12345::", "1:2:3:4:5:6:7:8:9"],
    "uuid": ["123e4567e89b12d3a456426614174000", "x"],
    "uri": ["a", "//example.com", "http:// x", "http://a b"],
}
PARSERS = {
    "date-time": dt.datetime.fromisoformat,
    "date": dt.date.fromisoformat,
    "time": dt.time.fromisoformat,
    "ipv4": ipaddress.IPv4Address,
    "ipv6": ipaddress.IPv6Address,
    "uuid": uuid.UUID,
}


@pytest.mark.parametrize("name", string_formats.TERMINALS)
def test_format_accepts_valid_and_rejects_invalid_strings(name: str) -> None:
    constraint = compile_schema({"type": "string", "format": name})
    assert [text for text in VALID[name] if not accepts(constraint, f'"{text}"')] == []
    assert [text for text in INVALID[name] if accepts(constraint, f'"{text}"')] == []


@pytest.mark.parametrize("name", string_formats.TERMINALS)
def test_generated_string_is_accepted_by_other_validators(name: str) -> None:
    constraint = compile_schema({"type": "string", "format": name, "maxLength": 60})
    choose = random.Random(7)
    for _ in range(60):
        text = random_output(constraint, choose)
        assert text is not None
        value = json.loads(text)
        jsonschema.validate(
            value,
            {"type": "string", "format": name},
            format_checker=jsonschema.Draft202012Validator.FORMAT_CHECKER,
        )
        if name in PARSERS:
            PARSERS[name](value)

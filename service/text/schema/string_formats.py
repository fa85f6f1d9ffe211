"""The string formats that a grammar enforces. Any other `format` is an annotation."""

from service.text.schema import patterns

# Valid days of each month, with leap years of the Gregorian calendar. The first year is 0001, as in
# the date types of most languages.
_YEAR = "(?:[1-9][0-9]{3}|0[1-9][0-9]{2}|00[1-9][0-9]|000[1-9])"
_LEAP_YEAR = "(?:[0-9]{2}(?:0[48]|[2468][048]|[13579][26])|(?:0[48]|[2468][048]|[13579][26])00)"
_DATE = (
    f"(?:{_YEAR}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])"
    "|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)|02-(?:0[1-9]|1[0-9]|2[0-8]))"
    f"|{_LEAP_YEAR}-02-29)"
)
_CLOCK = r"(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:\.[0-9]{1,9})?"
_ZONE = "(?:Z|[+-](?:[01][0-9]|2[0-3]):[0-5][0-9])"
_TIME = _CLOCK + _ZONE
_CLOCK_SPAN = (
    "T(?:[0-9]{1,9}H(?:[0-9]{1,9}M(?:[0-9]{1,9}S)?)?|[0-9]{1,9}M(?:[0-9]{1,9}S)?|[0-9]{1,9}S)"
)
_DATE_SPAN = (
    "(?:[0-9]{1,4}Y(?:[0-9]{1,4}M(?:[0-9]{1,6}D)?)?|[0-9]{1,4}M(?:[0-9]{1,6}D)?|[0-9]{1,6}D)"
)
_DURATION = f"P(?:{_DATE_SPAN}(?:{_CLOCK_SPAN})?|{_CLOCK_SPAN}|[0-9]{{1,6}}W)"
_LABEL = "[0-9A-Za-z](?:[0-9A-Za-z-]{0,61}[0-9A-Za-z])?"
_HOSTNAME = rf"{_LABEL}(?:\.{_LABEL}){{0,20}}"
_ATOM = "[0-9A-Za-z!#$%&'*+/=?^_`{|}~-]{1,30}".replace("/", r"\x2f")
_EMAIL = rf"{_ATOM}(?:\.{_ATOM})?@{_LABEL}(?:\.{_LABEL}){{0,4}}\.[A-Za-z]{{2,24}}"
_BYTE = "(?:25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])"
_IPV4 = rf"{_BYTE}(?:\.{_BYTE}){{3}}"
_HEX = "[0-9A-Fa-f]"
_UUID = f"{_HEX}{{8}}(?:-{_HEX}{{4}}){{3}}-{_HEX}{{12}}"


def _ipv6() -> str:
    """Return the regex of RFC 4291, section 2.2: `::` stands for one or more groups of zeros."""
    group = f"{_HEX}{{1,4}}"
    tail = f"(?:{group}:{group}|{_IPV4})"  # the last two groups
    options = [f"(?:{group}:){{6}}{tail}"]
    for after in range(6):  # groups between `::` and the tail
        before = 5 - after
        lead = f"(?:(?:{group}:){{0,{before - 1}}}{group})?" if before else ""
        options.append(f"{lead}::(?:{group}:){{{after}}}{tail}")
    options.append(f"(?:(?:{group}:){{0,5}}{group})?::{group}")
    options.append(f"(?:(?:{group}:){{0,6}}{group})?::")
    return "|".join(options)


def _uri() -> str:
    """Return the regex of absolute URIs (RFC 3986). Hosts are names or IPv4 addresses."""
    escaped = f"%{_HEX}{{2}}"
    free = r"[0-9A-Za-z\x2d._~!$&'()*+,;=:@]"
    segment = f"(?:{free}|{escaped})"
    path = rf"(?:\x2f{segment}*)*"
    user = rf"(?:(?:[0-9A-Za-z\x2d._~!$&'()*+,;=:]|{escaped})*@)?"
    authority = rf"\x2f\x2f(?:{user}{_HOSTNAME}(?::[0-9]{{1,5}})?)?{path}"
    rest = rf"(?:{segment}|[\x2f?])*"
    body = rf"(?:{authority}|{segment}+{path}|\x2f{segment}+{path})"
    return rf"[A-Za-z][0-9A-Za-z+.\x2d]*:{body}(?:\?{rest})?(?:\x23{rest})?"


_REGEXES = {
    "date-time": f"{_DATE}T{_TIME}",
    "date": _DATE,
    "time": _TIME,
    "duration": _DURATION,
    "email": _EMAIL,
    "hostname": _HOSTNAME,
    "ipv4": _IPV4,
    "ipv6": _ipv6(),
    "uuid": _UUID,
    "uri": _uri(),
}

TERMINALS = {name: patterns.matching(regex) for name, regex in _REGEXES.items()}

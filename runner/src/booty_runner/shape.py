"""Shape: recognizes values of variables that are plainly not secrets, by their form.

Every value that is not recognized here counts as a secret, so each pattern is narrow.
"""

import ipaddress
import re
from urllib.parse import parse_qsl, urlsplit

# Hosts, regions and the like are shorter.
_MAX_LENGTH = 2000
# Dates and account numbers have at most so many digits.
_MAX_DIGITS = 15

# Common values of settings, and names of programs.
_WORDS = re.compile(
    "(?i)true|false|yes|no|on|off|none|null|default|auto|always|never|enabled?|disabled?|required?|optional|prefer|allow"
    "|verify-ca|verify-full|anonymous|public|internal|external|latest|stable|read-?only|read-?write"
    "|production|staging|development|testing|preview|sandbox|local|localhost"
    "|debug|info|notice|warning|error|critical|fatal|trace|verbose"
    "|postgres|postgresql|mysql|mariadb|sqlite3?|redis|valkey|rabbitmq|mongo|mongodb|memcached|kafka|elasticsearch"
    "|opensearch|cassandra|clickhouse|celery|gunicorn|uvicorn|hypercorn|granian|nginx|apache|django|fastapi|flask"
    "|starlette|psycopg2?|asyncpg|aiosqlite|pymysql|prometheus|opentelemetry|filesystem|database|memory|console"
    "|json|text|utf-?8|utf8mb4|latin-?1|ascii"
)
# A name that contains one of these words marks its value as secret.
SECRET_NAME = re.compile("(?i)PASS|PWD|(?:^|_)PW(?:$|_)|SECRET|TOKEN|KEY|CREDENTIAL|DSN")
# A name with one of these endings has a value that is not a secret, provided that the value is made of words.
_PLACE = re.compile(
    r"(?i)(?:^|_)(?:hosts?|hostname|servers?|domains?|addr|address|region|zone|env|environment|mode|level|backend|engine"
    r"|driver|name|database|dbname|user|username|bucket|queue|topic|module|namespace|cluster|format|type)$"
)
# A word: up to 16 letters in one case (one capital may come first), with up to two digits; or a number of up to four
# digits.
_WORD = r"(?:[A-Z]?[a-z]{1,16}[0-9]{0,2}|[A-Z]{1,12}[0-9]{0,2}|[0-9]{1,4})"
_WORDY = re.compile(rf"{_WORD}(?:[-_.]{_WORD})*(?::[0-9]{{1,5}})?")
_PATH = re.compile(rf"(?:~|\.{{1,2}})?(?:/(?:[._]?{_WORD}(?:[-_.]{_WORD})*)?)+")
_DIRECTION = "north|south|east|west|central"
_PATTERNS = (
    # Numbers, also with a unit, dates, times, versions, ranges, networks.
    re.compile(r"(?i)[+-]?\d+(?:[.,:/-]\d+){0,7}(?:e[+-]?\d+)?(?:%|ms|us|s|sec|m|min|h|d|w|[kmgt]i?b?|b)?"),
    # Regions of clouds: eu-central-1, us-gov-west-1, europe-west4-a, northeurope, germanywestcentral.
    re.compile(
        rf"(?:(?:us|eu|ap|sa|ca|af|me|il|mx|cn|uk|gov|iso[bef]?|europe|asia|australia|africa|northamerica|southamerica"
        rf"|japan|korea|brazil|canada|france|germany|india|norway|sweden|switzerland|poland|uae|qatar|{_DIRECTION})-?)*"
        rf"(?:{_DIRECTION}|us|europe|asia)+-?[0-9]{{0,2}}(?:-?[a-f])?"
    ),
    # Full host names, with top-level domains that a passphrase of words with dots is unlikely to end in.
    re.compile(
        r"(?:\*?\.)?(?:[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9])?\.){1,8}"
        r"(?:com|net|org|info|biz|edu|gov|mil|int|arpa|io|dev|app|cloud|ai|tech|online|shop|site"
        r"|de|uk|fr|nl|eu|ch|es|pl|se|dk|fi|cz|pt|ro|hu|gr|ie|lu|ru|ua|tr|ca|mx|br|ar|cl|co|au|nz|jp|cn|kr|sg|hk|tw|za"
        r"|internal|intranet|local|localdomain|localhost|lan|svc|cluster|example|test|invalid)\.?(?::[0-9]{1,5})?"
    ),
    re.compile(r"localhost:[0-9]{1,5}"),
    re.compile(
        r"(?:Africa|America|Antarctica|Asia|Atlantic|Australia|Europe|Indian|Pacific|Etc)/[A-Za-z_]{2,20}(?:/[A-Za-z_]{2,20})?"
    ),
)


def is_plain(name: str, value: str) -> bool:
    """Whether a value is plainly not a secret: a common setting, number, host, region, path, URL, or a list of these.

    Args:
        name: the variable's name, or the key of a JSON member; it must not match `SECRET_NAME`.
        value: the value to judge.
    """
    if len(value) > _MAX_LENGTH:
        return False
    return all(_is_plain(name, entry) for entry in re.split(r"[\s,;|]+", value) if entry)


def is_place(name: str) -> bool:
    """Whether a name ends in a word such as `host` or `user`: its value is not a secret if it is made of words."""
    return bool(_PLACE.search(name))


def _is_plain(name: str, text: str) -> bool:
    if sum(character.isdigit() for character in text) > _MAX_DIGITS and not _is_address(text):
        return False
    return (
        bool(_WORDS.fullmatch(text))
        or any(pattern.fullmatch(text) for pattern in _PATTERNS)
        or bool(_PATH.fullmatch(text))
        or bool(is_place(name) and _WORDY.fullmatch(text))
        or _is_address(text)
        or _is_url(text)
    )


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_interface(re.sub(r"^\[(.*)\](:[0-9]{1,5})?$", r"\1", text))
    except ValueError:
        return False
    return True


def _is_url(text: str) -> bool:
    """Whether a text is a URL without a user or a password, and without a secret in its path or query."""
    try:
        scheme, host, path, query, fragment = urlsplit(text)
    except ValueError:
        return False
    if not scheme or "://" not in text or "@" in text or fragment:
        return False
    # In a URL, a host may be a single word, as in a variable named HOST.
    return (
        (not host or _is_plain("host", host))
        and (not path or bool(_PATH.fullmatch(path)))
        and all(not SECRET_NAME.search(key) and _is_plain(key, value) for key, value in parse_qsl(query, True))
    )

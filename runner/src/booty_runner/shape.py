"""Shape: which values of variables are plainly no secret, by how they look.

Whatever is not recognized here counts as a secret, so each shape is a narrow one.
"""

import ipaddress
import re
from urllib.parse import parse_qsl, urlsplit

# A longer value is looked at by nobody who wants to know a host or a region.
_MAX_LENGTH = 2000
# More digits than in a date, an address or an account's number.
_MAX_DIGITS = 15

# Of settings: what says how something runs, and which program it is.
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
# A name that has one of these in it says that its value is a secret.
SECRET_NAME = re.compile("(?i)PASS|PWD|(?:^|_)PW(?:$|_)|SECRET|TOKEN|KEY|CREDENTIAL|DSN")
# A name that ends so says what its value is: not a secret, if that is made of words.
_PLACE = re.compile(
    r"(?i)(?:^|_)(?:hosts?|hostname|servers?|domains?|addr|address|region|zone|env|environment|mode|level|backend|engine"
    r"|driver|name|database|dbname|user|username|bucket|queue|topic|module|namespace|cluster|format|type)$"
)
# The parts of words, as long as words are: letters in one case, and hardly a digit.
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
    # Hosts by their full names, with the last parts that words of a password are unlikely to have.
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
    """Whether a value is plainly no secret: a word of settings, a number, a host, a region, a path, a URL, or a list.

    Args:
        name: of the variable, or of the member of a structure; it does not say that the value is a secret.
        value: what is judged.
    """
    if len(value) > _MAX_LENGTH:
        return False
    return all(_is_plain(name, entry) for entry in re.split(r"[\s,;|]+", value) if entry)


def is_place(name: str) -> bool:
    """Whether a name says that its value is a host, a user or the like, which is no secret if it is made of words."""
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
    """Whether a text is a URL without user and password, whose path and query are no secret either."""
    try:
        scheme, host, path, query, fragment = urlsplit(text)
    except ValueError:
        return False
    if not scheme or "://" not in text or "@" in text or fragment:
        return False
    # A host is what a URL's place says it is.
    return (
        (not host or _is_plain("host", host))
        and (not path or bool(_PATH.fullmatch(path)))
        and all(not SECRET_NAME.search(key) and _is_plain(key, value) for key, value in parse_qsl(query, True))
    )

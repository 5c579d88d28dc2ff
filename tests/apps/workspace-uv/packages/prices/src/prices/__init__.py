from babel.numbers import format_currency


def euros(amount: int) -> str:
    return format_currency(amount, "EUR", locale="en")

"""Amounts as a reader takes them in: 1.42 TFLOP, 3.3 million, 0.01234."""

PREFIXES = ("", "k", "M", "G", "T", "P", "E")


def flops(value: float) -> str:
    """Floating-point operations with three digits: 1.42 TFLOP."""
    scaled, prefix = value, ""
    for prefix in PREFIXES:
        if scaled < 999.5 or prefix == PREFIXES[-1]:
            break
        scaled /= 1000.0
    return f"{scaled:.3g} {prefix}FLOP"


def count(value: int) -> str:
    """Up to a million every digit, then three: 5,120, 3.28 M."""
    return f"{value:,}" if value < 1_000_000 else f"{value / 1e6:,.3g} M" if value < 1e9 else f"{value / 1e9:,.3g} G"


def error(value: float) -> str:
    """A mean squared error: five decimals, and three digits where these would leave fewer."""
    return f"{value:.5f}" if value >= 1e-3 else f"{value:.3g}"


def listed(names: list[str]) -> str:
    """`a, b and c`."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"

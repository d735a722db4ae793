"""What a figure has to be, and whether it is."""


def verdict(figure: float, *, most: float | None = None, least: float | None = None, unit: str = "") -> str:
    """Such as "ok, at most 1.05x", or "MISSED, …"."""
    met = (most is None or figure <= most) and (least is None or figure >= least)
    bounds = [f"at most {most:g}{unit}"] if most is not None else []
    bounds += [f"at least {least:g}{unit}"] if least is not None else []
    return f"{'ok' if met else 'MISSED'}, {' and '.join(bounds)}"

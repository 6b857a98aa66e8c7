"""Ways to damage bytes and JSON values, drawn by a generator."""

import json
import random
from typing import Any

HOSTILE_NUMBERS = (0, -1, 1, 2, 7, 2**15, 2**31 - 1, 2**31, 2**32 - 1, 2**63, 10**30, -(2**40))
HOSTILE_VALUES: tuple[Any, ...] = (
    None, True, "", "x", "../../x", "\0", "\ud800", "ü" * 300, [], {}, [[]], [None], {"a": {}},
    0.5, -0.0, 1e308, 1e-320, float("nan"), float("inf"), *HOSTILE_NUMBERS,
)  # fmt: skip


def damaged(data: bytes, generator: random.Random, other: bytes = b"") -> bytes:
    """The bytes with one to four changes; ``other``: where a foreign part may come from."""
    changed = bytearray(data)
    for _ in range(generator.randint(1, 4)):
        _damage(changed, generator, other)
    return bytes(changed)


def _damage(changed: bytearray, generator: random.Random, other: bytes) -> None:
    if not changed:
        return
    place = generator.randrange(len(changed))
    if generator.random() < 0.5:  # headers are where formats are fragile
        place = generator.randrange(min(64, len(changed)))
    size = generator.choice((1, 2, 4, 8, 64, 1024))
    end = min(place + size, len(changed))
    match generator.randrange(8):
        case 0:
            changed[place] ^= 1 << generator.randrange(8)
        case 1:
            changed[place:end] = generator.randbytes(end - place)
        case 2:
            del changed[place:end]
        case 3:
            changed[place:place] = changed[place:end]
        case 4:
            del changed[place:]
        case 5:
            number = generator.choice(HOSTILE_NUMBERS) % 2**32
            order = generator.choice(("big", "little"))
            changed[place : place + 4] = number.to_bytes(4, order)
        case 6:
            start = generator.randrange(len(other) + 1)
            changed[place:end] = other[start : start + size]
        case 7:
            changed[place:end] = bytes([generator.choice((0, 255, 32, 10))]) * (end - place)


def damaged_json(value: Any, generator: random.Random) -> bytes:
    """The JSON with one to three other values, lost keys or new ones; sometimes damaged bytes."""
    root = json.loads(json.dumps({"": value}))
    for _ in range(generator.randint(1, 3)):
        _damage_json(root, generator)
    text = json.dumps(root.get(""), indent=2).encode()
    return damaged(text, generator, text) if generator.random() < 0.2 else text


def _damage_json(root: Any, generator: random.Random) -> None:
    places = list(_places(root))
    if not places:  # the whole of it was lost
        return
    holder, key = generator.choice(places)
    match generator.randrange(6):
        case 0 | 1:
            holder[key] = generator.choice(HOSTILE_VALUES)
        case 2:
            del holder[key]
        case 3:
            new = generator.choice(("x", "", "__class__", "checkpoint_path", "\0", str(key)))
            value = generator.choice(HOSTILE_VALUES)
            holder.update({new: value}) if isinstance(holder, dict) else holder.append(value)
        case 4:
            other, name = generator.choice(places)
            holder[key] = json.loads(json.dumps(other[name]))
        case 5:
            value = holder[key]
            if isinstance(value, int | float):
                value = generator.choice((-value, value * 2, value + 1, value * 10**6, str(value)))
            elif isinstance(value, str):
                value = damaged(value.encode("utf-8", "replace"), generator).decode(
                    "utf-8", "replace"
                )
            elif isinstance(value, list):
                value = value * generator.choice((0, 2, 50))
            holder[key] = value


def _places(value: Any) -> Any:
    """(holder, key) of everything in a JSON value."""
    keys = range(len(value)) if isinstance(value, list) else list(value)
    for key in keys:
        yield value, key
        if isinstance(value[key], dict | list):
            yield from _places(value[key])

"""TensorBoard's event files: records of a length, a protocol buffer `Event`, and their checksums."""

import struct
from pathlib import Path

POLYNOMIAL = 0x82F63B78  # CRC-32C (Castagnoli), reflected


def _crc_table() -> list[int]:
    table = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (POLYNOMIAL if value & 1 else 0)
        table.append(value)
    return table


TABLE = _crc_table()


def masked_crc32c(data: bytes) -> int:
    """Rotated and shifted, so that a record of records does not hold its own checksum."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ TABLE[(crc ^ byte) & 0xFF]
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def record(data: bytes) -> bytes:
    length = struct.pack("<Q", len(data))
    return (length + struct.pack("<I", masked_crc32c(length)) + data
            + struct.pack("<I", masked_crc32c(data)))


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _bytes_field(number: int, data: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(data)) + data


def _event(wall_time: float, step: int, rest: bytes) -> bytes:
    """Event {double wall_time = 1; int64 step = 2; ...}"""
    return record(b"\x09" + struct.pack("<d", wall_time) + b"\x10" + _varint(step) + rest)


def version_event(wall_time: float) -> bytes:
    """What every event file begins with: Event {string file_version = 3}"""
    return _event(wall_time, 0, _bytes_field(3, b"brain.Event:2"))


def scalars_event(wall_time: float, step: int, scalars: dict[str, float]) -> bytes:
    """Event {Summary summary = 5 {repeated Value value = 1 {string tag = 1; float simple_value = 2}}}"""
    values = (_bytes_field(1, name.encode()) + b"\x15" + struct.pack("<f", value)
              for name, value in scalars.items())
    return _event(wall_time, step, _bytes_field(5, b"".join(_bytes_field(1, v) for v in values)))


def event_file_name(folder: Path, wall_time: float) -> Path:
    return folder / f"events.out.tfevents.{int(wall_time):010d}.megadict"

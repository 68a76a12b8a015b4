"""The metadata of a GGUF file, and the same file with another value in it."""

import struct

SCALARS = {
    0: "B", 1: "b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "?",
    10: "<Q", 11: "<q", 12: "<d",
}  # fmt: skip
STRING, ARRAY = 8, 9
HEADER = 24


class Reader:
    def __init__(self, data):
        self.data, self.at = data, 0

    def scalar(self, format):
        (value,) = struct.unpack_from(format, self.data, self.at)
        self.at += struct.calcsize(format)
        return value

    def string(self):
        length = self.scalar("<Q")
        self.at += length
        return self.data[self.at - length : self.at].decode()

    def value(self, kind):
        if kind == STRING:
            return self.string()
        if kind != ARRAY:
            return self.scalar(SCALARS[kind])
        kind, n = self.scalar("<I"), self.scalar("<Q")
        if kind in SCALARS:
            format = f"<{n}{SCALARS[kind][-1]}"
            values = struct.unpack_from(format, self.data, self.at)
            self.at += struct.calcsize(format)
            return list(values)
        return [self.value(kind) for _ in range(n)]


def metadata(data):
    """All keys and values, and where in the file each value is."""
    reader = Reader(data)
    magic, _, _, n_keys = struct.unpack_from("<4sIQQ", data)
    assert magic == b"GGUF", magic
    reader.at = HEADER
    values, places = {}, {}
    for _ in range(n_keys):
        key, kind = reader.string(), reader.scalar("<I")
        start = reader.at
        values[key] = reader.value(kind)
        places[key] = (start, reader.at)
    return values, places


def with_string(data, places, key, text):
    """A file without tensors in which a string is another one."""
    start, end = places[key]
    text = text.encode()
    return data[:start] + struct.pack("<Q", len(text)) + text + data[end:]

"""Reading a coded picture's headers bit by bit."""

MOST = 512  # bytes: no header that is read here takes more


class Bits:
    """Reads numbers of so many bits, the highest first; raises IndexError past the end."""

    def __init__(self, data: bytes):
        data = data[:MOST]
        self._value = int.from_bytes(data, "big")
        self._left = 8 * len(data)

    def read(self, count: int) -> int:
        self._left -= count
        if self._left < 0:
            raise IndexError("the data ends within a number")
        return self._value >> self._left & ((1 << count) - 1)

    def golombs(self, count: int) -> list[int]:
        """That many times `golomb`, in less time."""
        left, numbers = self._left, []
        rest = self._value & ((1 << left) - 1)
        for _ in range(count):
            zeros = left - rest.bit_length()
            left -= 2 * zeros + 1
            if left < 0:
                raise IndexError("the data ends within a number")
            code = rest >> left
            rest -= code << left
            numbers.append(code - 1)
        self._left = left
        return numbers

    def golomb(self) -> int:
        """A number in Exp-Golomb code: so many zeros, and one more bit than that (ITU-T H.264, 9.1)."""
        zeros = self._left - (self._value & ((1 << self._left) - 1)).bit_length()
        return self.read(2 * zeros + 1) - 1

    def signed_golomb(self) -> int:
        """A number in Exp-Golomb code that counts 0, 1, -1, 2, -2 and so on."""
        code = self.golomb()
        return (code + 1) // 2 if code % 2 else -(code // 2)

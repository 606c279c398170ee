from collections.abc import Mapping, Sequence

class Row:
    links: list[tuple[str, str]]
    @staticmethod
    def decode(data: bytes) -> Row: ...
    def encode(self) -> bytes: ...

class Fold:
    def __init__(
        self,
        totals: int,
        spans: Sequence[int],
        lists: int,
        late: int,
        actions: Mapping[
            str,
            tuple[
                list[tuple[int, bool]],
                list[tuple[int, int | None, bool, int]],
                list[tuple[int, int, int]],
            ],
        ],
    ) -> None: ...
    def absorb(self, rows: dict[str, Row], columns: Sequence[object]) -> list[str]: ...

class Decoder:
    def __init__(
        self,
        fields: Sequence[tuple[str, str, bool, tuple[list[str], int, tuple[int, int]]]],
        either: Sequence[str],
        years: tuple[int, int],
    ) -> None: ...
    def decode(
        self, values: Sequence[bytes]
    ) -> tuple[list[int], dict[str, tuple[bytes, bytes, bytes]]]: ...

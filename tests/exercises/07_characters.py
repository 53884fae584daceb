"""A solution of exercise 7."""

UNREADABLE = "\ufffd"


class Characters:
    def __init__(self, decode):
        self.decode, self.ids, self.shown = decode, [], ""

    def feed(self, token_id: int) -> str:
        self.ids.append(token_id)
        whole = self.decode(self.ids).rstrip(UNREADABLE)
        new, self.shown = whole[len(self.shown) :], whole
        return new

    def finish(self) -> str:
        return UNREADABLE if self.decode(self.ids) != self.shown else ""

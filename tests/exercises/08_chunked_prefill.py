"""A solution of exercise 8."""


def prefill(decoder, rows, cache, chunk):
    for some in rows.split(chunk):
        hidden = decoder(some[None], cache)
        cache.advance(len(some))
    return decoder.logits(hidden[:, -1:])[0, 0]

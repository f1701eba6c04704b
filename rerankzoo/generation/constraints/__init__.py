"""Constraints on slates: what a shop does not leave to the model (docs/decoding.md).

`bind` checks that every request has a slate that keeps them, before anything is decoded. Decoding then chooses among
the candidates after which the slate can be completed. Which those are is known by counting for all rows at once
(`SlateRules`), wherever that is exact: mostly, since candidates abound. Other requests are searched, one by one.
"""

"""Constraints on slates: what a shop does not leave to the model.

`Exclude`, `Pin`, `AtMost`, `MinDistance` and `AtLeast` say which slates may be shown, `Boost` which items are
preferred. Any number of them hold together, for every strategy, every model and in mining. They are a mask and a bias
on the scorer's scores: excluded candidates stay visible to the model, and a slate's scores are the scorer's own.

A request's slate fills M positions, or as many as there are candidates that are not excluded. `bind` checks, before
anything is decoded, that every request has such a slate. Decoding (`Progress`) then chooses among the candidates after
which the slate can be completed, so that no slate ever breaks a constraint. Which those are is known by counting for
all rows at once (`SlateRules`), wherever that is exact: mostly, since candidates abound. Other requests are searched
one by one, in plain Python (`RequestRules`).
"""

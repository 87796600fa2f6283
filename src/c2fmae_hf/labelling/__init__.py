"""
From images to a multi-granular dataset: sources, labellers, shards, engines, validation. Nothing else in the package
imports it. Needs the `label` extra, and for clusters the `ray` extra.

In the order in which data flows: `records`, `sources`, the labellers (`labeller`, `classical`, `universal`,
`mask_generation`, `annotations`), `shards`, `engine`, `ray_engine`, `job`, `validation`.
"""

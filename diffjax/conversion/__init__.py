"""Published weights as runs: import of folders and files of other libraries, and export to them.

A component of a pipeline, such as a U-Net or an autoencoder, has two functions of its config, one in each direction,
and a table of its tensors (`diffjax.published.table`). A run of ours is the component's config and weights.
"""

"""
From images to a multi-granular dataset. Needs `pip install "c2fmae-hf[all]"`, and for clusters `"c2fmae-hf[ray]"`.

In the order in which data flows:

- `sources` find images in a folder, tar files or a dataset; `sources.open.open_source` opens one by name.
- `records` decode an image and encode its maps as a row.
- `labellers` give each image a semantic and an instance map.
- `shards` write rows to Parquet files.
- `engine` runs these steps in this process or several, `ray_engine` on a cluster.
- `job.label_images` runs a whole job: call this.
"""

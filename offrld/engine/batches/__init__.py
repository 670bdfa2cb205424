"""Batches: what an update reads, from the store to the loss.

Five nouns name everything here:

- `Request` (source.py): the samples that a run takes from a store at each update: sampler, its arguments, seeds, noise.
- `Source` (source.py): makes the samples of update ``k``. Three kinds make the same bits: `HostSource`, `PrefetchSource` (a thread fills
  batches ahead of the device) and `ResidentSource` (the store lies on the device). `SourceChoice` (source_choice.py) picks one.
- `Samples` (source.py): one update's samples: the store's batch as tensors, in the store's dtypes and units, and the noise.
- `Block` (source.py): the memory behind samples on the host, one tensor of bytes, so that one copy moves a whole update.
- `Feed` (feed.py): scales samples and puts them on the training device: the `Batch` or `Windows` that losses see.

`caller_batches` turns a batch of the caller into the same form, without a source.
"""

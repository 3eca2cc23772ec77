"""What a stage reads: mixtures, packed documents, streams, and the batches made of them."""

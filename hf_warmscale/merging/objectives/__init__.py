"""What a merge search minimises, and the documents that it is judged on."""

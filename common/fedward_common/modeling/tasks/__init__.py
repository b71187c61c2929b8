"""What is learned, one file a task: from texts to tensors, from logits to losses and scores."""

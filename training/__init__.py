"""How the embedded demo checkpoint is made: scenes, questions, tokenizer, training, evaluation."""

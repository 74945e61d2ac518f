"""Questions and answers: images, thinking, text, tokens and how it ended; chats and previews."""

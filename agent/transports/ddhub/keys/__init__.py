"""Who has which key: the documents of DIDs, where they are looked up, and our own RSA keys."""

-- Signing secrets are sealed: `secret` is nonce, ciphertext and tag, and `key` is the number of the key that opens it.
ALTER TABLE app_secrets ADD COLUMN key BYTEA NOT NULL;

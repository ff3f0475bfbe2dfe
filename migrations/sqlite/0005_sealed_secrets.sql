-- Signing secrets are sealed: `secret` is nonce, ciphertext and tag, and `key` is the number of the key that opens it.
-- Without a number the secret was written before this step; the start that comes upon it seals it.
ALTER TABLE app_secrets ADD COLUMN key BLOB;

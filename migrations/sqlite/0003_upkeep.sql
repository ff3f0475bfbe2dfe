-- Upkeep looks every second for what is over: without these it reads every token, secret and service. Nearly all rows
-- stay, and are not in them.
CREATE INDEX app_tokens_by_expiry ON app_tokens (expires_at) WHERE expires_at IS NOT NULL;
CREATE INDEX app_secrets_by_expiry ON app_secrets (expires_at) WHERE expires_at IS NOT NULL;
CREATE INDEX services_hidden ON services (service) WHERE hidden = 1;

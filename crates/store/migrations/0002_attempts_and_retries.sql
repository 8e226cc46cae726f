-- Retries, silence, who cancelled and why, files by attempt, and settings of the running server.

-- Whether the live attempt was not heard of for longer than the heartbeat limit.
alter table runs add column silent boolean not null default false;
-- How often the run was tried again, as JSON; null: never.
alter table runs add column retries {text};
-- A run that failed and waits is not admitted before this.
alter table runs add column not_before_us bigint;
-- Who asked for the cancel; `cancel_reason` is why, and may be written by clients.
alter table runs add column cancelled_by {text};
update runs set cancelled_by = cancel_reason, cancel_reason = null where desired = 'Cancel' and ownership = 'Managed';

-- When the user's code of the attempt started.
alter table attempts add column started_us bigint;
update attempts set started_us = (select r.started_us from runs r where r.workspace = attempts.workspace and r.id = attempts.run and r.attempt = attempts.id);

-- The attempt that wrote the file; null: a client did.
alter table artifacts add column attempt {text};

-- What an operator told the running server and a restart must not forget, e.g. that it is drained.
create table server_settings (
  name {text} primary key,
  value {text} not null
){without_rowid};

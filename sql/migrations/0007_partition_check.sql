-- The log in partitions, 2 of 3: look through the events for one beyond the end. It takes as long as
-- reading them all, and meanwhile everybody goes on reading and appending.
ALTER TABLE causeway.event VALIDATE CONSTRAINT event_ends;

-- Adds entries to the audit log: JSON objects with its columns' names. What does something calls this in the same
-- transaction, so that the log tells of all that was done and of nothing else.
--
-- The transaction has its number before its entries have theirs: whoever sees an entry knows that older ones are only
-- still to come from transactions that had begun by then, and seals no earlier than these have ended.
CREATE FUNCTION write_audit(p_entries json[]) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
  PERFORM pg_current_xact_id();
  INSERT INTO audit (user_id, username, token_id, address, request_id, action, object, outcome, status, detail)
  SELECT r.user_id, r.username, r.token_id, r.address, r.request_id, r.action, r.object, r.outcome, r.status, r.detail
  FROM unnest(p_entries) WITH ORDINALITY AS e(entry, n), json_to_record(e.entry) AS r(
    user_id int, username text, token_id int, address text, request_id text, action text, object text, outcome text,
    status smallint, detail jsonb)
  ORDER BY e.n;
END $$;

-- Makes ready up to p_limit jobs whose time has come; those of scripts as far as it is their turn, too. Returns how many
-- there were.
CREATE FUNCTION promote_jobs(p_limit int) RETURNS int
LANGUAGE plpgsql
SET plan_cache_mode = force_generic_plan
-- Plans are kept, and the tables grow from nothing: only walks along an index are right at both ends.
SET enable_seqscan = off
SET enable_bitmapscan = off
SET enable_mergejoin = off
SET enable_hashjoin = off
AS $$
DECLARE
  v_scripts int[];
  v_unbounded int[];
  v_ready int;
  v_waiting int;
BEGIN
  v_scripts := ARRAY(SELECT DISTINCT d.script_id FROM (
    SELECT w.script_id FROM deferred_job w WHERE w.run_at <= statement_timestamp() ORDER BY w.run_at, w.job_id LIMIT p_limit
  ) AS d WHERE d.script_id IS NOT NULL);
  PERFORM lock_scripts(v_scripts);
  v_unbounded := unbounded_scripts(v_scripts);
  WITH due AS (
    DELETE FROM deferred_job WHERE job_id IN (
      SELECT w.job_id FROM deferred_job w
      WHERE w.run_at <= statement_timestamp() AND (w.script_id IS NULL OR w.script_id = ANY (v_unbounded))
      ORDER BY w.run_at, w.job_id LIMIT p_limit FOR UPDATE SKIP LOCKED)
    RETURNING job_id, user_id, ord, attempt, script_id)
  INSERT INTO ready_job (job_id, user_id, ord, attempt, script_id) SELECT * FROM due;
  GET DIAGNOSTICS v_ready = ROW_COUNT;
  IF v_ready > 0 THEN
    PERFORM pg_notify('ready', '');
  END IF;
  UPDATE deferred_job SET run_at = 'infinity' WHERE job_id IN (
    SELECT w.job_id FROM deferred_job w WHERE w.run_at <= statement_timestamp() AND w.script_id = ANY (v_scripts)
    ORDER BY w.run_at, w.job_id LIMIT p_limit FOR UPDATE SKIP LOCKED);
  GET DIAGNOSTICS v_waiting = ROW_COUNT;
  PERFORM admit_jobs(v_scripts);
  RETURN v_ready + v_waiting;
END $$;

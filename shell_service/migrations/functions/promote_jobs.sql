-- Makes ready up to p_limit jobs whose time has come; those of scripts as far as it is their turn, too. Returns how many
-- there were.
CREATE FUNCTION promote_jobs(p_limit int) RETURNS int
LANGUAGE plpgsql
AS $$
DECLARE
  v_scripts int[];
  v_ready int;
  v_waiting int;
BEGIN
  v_scripts := ARRAY(SELECT DISTINCT d.script_id FROM (
    SELECT w.script_id FROM deferred_job w WHERE w.run_at <= clock_timestamp() ORDER BY w.run_at, w.job_id LIMIT p_limit
  ) AS d WHERE d.script_id IS NOT NULL);
  PERFORM lock_scripts(v_scripts);
  WITH due AS (
    DELETE FROM deferred_job WHERE job_id IN (
      SELECT w.job_id FROM deferred_job w WHERE w.run_at <= clock_timestamp() AND w.script_id IS NULL
      ORDER BY w.run_at, w.job_id LIMIT p_limit FOR UPDATE SKIP LOCKED)
    RETURNING job_id, user_id, ord, attempt)
  INSERT INTO ready_job (job_id, user_id, ord, attempt) SELECT * FROM due;
  GET DIAGNOSTICS v_ready = ROW_COUNT;
  IF v_ready > 0 THEN
    PERFORM pg_notify('ready', '');
  END IF;
  UPDATE deferred_job SET run_at = 'infinity' WHERE job_id IN (
    SELECT w.job_id FROM deferred_job w WHERE w.run_at <= clock_timestamp() AND w.script_id = ANY (v_scripts)
    ORDER BY w.run_at, w.job_id LIMIT p_limit FOR UPDATE SKIP LOCKED);
  GET DIAGNOSTICS v_waiting = ROW_COUNT;
  PERFORM admit_jobs(v_scripts);
  RETURN v_ready + v_waiting;
END $$;

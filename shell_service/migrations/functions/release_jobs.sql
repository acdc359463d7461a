-- Gives back claims whose scripts never began: to the queue, or to their end where a cancel was asked for. Returns the
-- fences of those that counted. A script of which a start is recorded is released only by whoever is certain that it
-- never was let go.
CREATE FUNCTION release_jobs(p_jobs uuid[], p_fences bigint[], p_certain boolean) RETURNS bigint[]
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
  v_fences bigint[];
  v_ended uuid[];
BEGIN
  v_scripts := ARRAY(SELECT DISTINCT r.script_id FROM running_job r
                     WHERE r.job_id = ANY (p_jobs) AND r.script_id IS NOT NULL);
  PERFORM lock_scripts(v_scripts);
  WITH gone AS (
    DELETE FROM running_job r USING unnest(p_jobs, p_fences) AS d(job_id, fence)
    WHERE r.job_id = d.job_id AND r.fence = d.fence AND (r.started_at IS NULL OR p_certain)
    RETURNING r.*),
  back AS (
    INSERT INTO ready_job (job_id, user_id, ord, attempt, script_id)
    SELECT job_id, user_id, ord, attempt - 1, script_id FROM gone WHERE cancel_requested_at IS NULL),
  ended AS (
    UPDATE job j SET status = 'CANCELLED', reason = 'cancelled by ' || g.cancelled_by,
      cancelled_by = g.cancelled_by, finished_at = statement_timestamp(), modified = statement_timestamp()
    FROM gone g WHERE j.id = g.job_id AND g.cancel_requested_at IS NOT NULL AND j.status IS NULL)
  SELECT array_agg(g.fence), array_agg(g.job_id) FILTER (WHERE g.cancel_requested_at IS NOT NULL)
  INTO v_fences, v_ended FROM gone g;
  PERFORM tell_jobs('F', v_ended);
  IF v_ended IS NOT NULL THEN
    PERFORM admit_jobs(v_scripts);
  END IF;
  IF v_fences IS NOT NULL THEN
    PERFORM pg_notify('ready', '');
  END IF;
  RETURN v_fences;
END $$;

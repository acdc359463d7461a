-- Records how attempts ended, and tells of jobs that have ended with them. p_results: [{job_id, fence, retry_in, status,
-- reason, …}], where retry_in, in seconds, asks for another attempt, which there is unless the job is to be cancelled.
-- Returns the fences of those that counted; the same again changes nothing.
CREATE FUNCTION finish_jobs(p_results json) RETURNS bigint[]
LANGUAGE plpgsql
SET plan_cache_mode = force_generic_plan
-- Plans are kept, and the tables grow from nothing: only walks along an index are right at both ends.
SET enable_seqscan = off
SET enable_bitmapscan = off
SET enable_mergejoin = off
SET enable_hashjoin = off
AS $$
DECLARE
  v_jobs uuid[];
  v_fences bigint[];
BEGIN
  WITH ended AS MATERIALIZED (
    SELECT * FROM json_to_recordset(p_results) AS r(
      job_id uuid, fence bigint, retry_in float8, status text, reason text, runner text, return_code int, signal text,
      wall_seconds float8, cpu_seconds float8, peak_memory_bytes bigint, written_bytes bigint, stdout_bytes bigint,
      stderr_bytes bigint, output_truncated boolean)),
  gone AS (
    DELETE FROM running_job r USING ended e WHERE r.job_id = e.job_id AND r.fence = e.fence
    RETURNING r.job_id, r.fence, r.user_id, r.ord, r.attempt, r.started_at, r.cancelled_by,
              CASE WHEN r.cancel_requested_at IS NULL THEN e.retry_in END AS retry_in),
  again AS (
    INSERT INTO deferred_job (job_id, user_id, ord, run_at, attempt)
    SELECT job_id, user_id, ord, clock_timestamp() + make_interval(secs => retry_in), attempt
    FROM gone WHERE retry_in IS NOT NULL),
  told AS (
    -- Of another attempt to come nothing is said but its number.
    UPDATE job j SET attempt = g.attempt, modified = statement_timestamp(),
      finished_at = CASE WHEN g.retry_in IS NULL THEN statement_timestamp() END,
      started_at = CASE WHEN g.retry_in IS NULL THEN g.started_at END,
      status = e.status, runner = e.runner,
      cancelled_by = CASE WHEN e.status = 'CANCELLED' THEN g.cancelled_by END,
      reason = CASE WHEN e.status = 'CANCELLED' THEN 'cancelled by ' || g.cancelled_by ELSE e.reason END,
      return_code = e.return_code, signal = e.signal, wall_seconds = e.wall_seconds, cpu_seconds = e.cpu_seconds,
      peak_memory_bytes = e.peak_memory_bytes, written_bytes = e.written_bytes, stdout_bytes = e.stdout_bytes,
      stderr_bytes = e.stderr_bytes, output_truncated = e.output_truncated
    FROM gone g LEFT JOIN ended e ON e.fence = g.fence AND g.retry_in IS NULL
    WHERE j.id = g.job_id AND j.status IS NULL
    RETURNING j.id, g.fence, g.retry_in IS NULL AS final)
  SELECT array_agg(t.id) FILTER (WHERE t.final), array_agg(t.fence) INTO v_jobs, v_fences FROM told t;
  PERFORM tell_jobs('F', v_jobs);
  RETURN v_fences;
END $$;

-- Tells whoever waits that these jobs have started (S) or ended (F): channel job, the letter and the ids in hex, as many
-- as fit into one payload of 8,000 bytes.
CREATE FUNCTION tell_jobs(p_letter text, p_jobs uuid[]) RETURNS void
LANGUAGE plpgsql
AS $$
BEGIN
  FOR v_from IN 1..coalesce(cardinality(p_jobs), 0) BY 200 LOOP
    PERFORM pg_notify('job', p_letter || replace(array_to_string(p_jobs[v_from:v_from + 199], ','), '-', ''));
  END LOOP;
END $$;

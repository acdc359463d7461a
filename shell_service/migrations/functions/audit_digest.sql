-- The digest of the audit log's entries after p_after and up to p_last, behind the digest p_before: the SHA-256 of that,
-- of their number, and of the SHA-256 of each. An entry is taken as a JSON array of its columns, times in UTC.
CREATE FUNCTION audit_digest(p_before bytea, p_after bigint, p_last bigint, OUT entries bigint, OUT digest bytea)
LANGUAGE sql STABLE
AS $$
  SELECT count(*), sha256(p_before || convert_to(p_last || ':' || count(*) || ':', 'UTF8')
    || coalesce(string_agg(sha256(convert_to(jsonb_build_array(
      a.id, to_char(a.at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US'), a.user_id, a.username, a.token_id, a.address,
      a.request_id, a.action, a.object, a.outcome, a.status, a.detail)::text, 'UTF8')), ''::bytea ORDER BY a.id), ''))
  FROM audit a WHERE a.id > p_after AND a.id <= p_last
$$;

{# The records of a source, each with the day of its file. #}
{% macro deliveries(source, columns) %}
    SELECT
        * EXCLUDE (filename),
        regexp_extract(filename, '(\d{4}-\d{2}-\d{2})\.jsonl\.gz$', 1)::DATE AS delivered_on
    FROM read_json(
        '{{ var("sources") }}/{{ source }}/*.jsonl.gz',
        format = 'newline_delimited',
        filename = true,
        columns = {{ columns }}
    )
{% endmacro %}

{# The start of a business day, in UTC. #}
{% macro opens_at(day) -%}
    timezone('UTC', timezone('{{ var("zone") }}', ({{ day }})::TIMESTAMP))
{%- endmacro %}

{# dbt takes no checksum of a seed above a megabyte; the metering command and Dagster hand the hash over. #}
{% macro price_book_hash() %}
    {% set given = env_var('METERING_PRICE_BOOK_HASH', '') %}
    {% if given %}
        {{ return(given) }}
    {% endif %}
    {% set lines = [] %}
    {% for seed in graph.nodes.values() if seed.resource_type == 'seed' %}
        {% if seed.checksum.name != 'sha256' %}
            {% do exceptions.warn(
                seed.original_file_path ~ " is too large for dbt to tell whether it changed, so this build does not "
                ~ "know its price book and no period can be closed on it. Run metering build instead."
            ) %}
            {{ return(none) }}
        {% endif %}
        {% do lines.append(seed.name ~ ' ' ~ seed.checksum.checksum) %}
    {% endfor %}
    {{ return(local_md5(lines | sort(case_sensitive=true) | join('\n'))) }}
{% endmacro %}

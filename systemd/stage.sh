# Sourced by install and package: carries out systemd/files. Owns: what the lines of that list mean. Never: starts a unit.

# stage DESTDIR PREFIX BINARY MANUAL: puts every file of the list below DESTDIR. The units name the program by its prefix.
stage() {
    stage_list=$here/files
    stage_dest=$1 stage_prefix=$2 stage_binary=$3 stage_manual=$4
    if [ "$stage_prefix" = /usr ]; then
        stage_units=/usr/lib/systemd/system stage_sysctl=/usr/lib/sysctl.d stage_modules=/usr/lib/modules-load.d
    else
        stage_units=/etc/systemd/system stage_sysctl=/etc/sysctl.d stage_modules=/etc/modules-load.d
    fi
    while read -r kind first second third; do
        case $kind in
            file) stage_file "$first" "$stage_dest$(stage_path "$second")" "$third" ;;
            link) stage_link "$stage_dest$(stage_path "$first")" "$(stage_path "$second")" ;;
            dir) install -d -m "$first" "$stage_dest$(stage_path "$second")" ;;
        esac
    done <"$stage_list"
}

stage_path() {
    printf '%s' "$1" | sed -e "s|@prefix@|$stage_prefix|" -e "s|@units@|$stage_units|" \
        -e "s|@sysctl@|$stage_sysctl|" -e "s|@modules@|$stage_modules|"
}

# A file that runs or is read right now is not written over: the new one takes its place by a rename.
stage_file() {
    mode=$1 to=$2
    case $3 in
        @binary@) from=$stage_binary ;;
        @manual@/*) from=$stage_manual/${3#@manual@/} ;;
        *) from=$here/$3 ;;
    esac
    if [ ! -e "$from" ] && [ "${3#@manual@}" != "$3" ] && [ -n "${stage_without_manual:-}" ]; then
        return 0
    fi
    case $to in
        */) for each in "$from"*; do stage_one "$mode" "$to$(basename "$each")" "$each"; done ;;
        *) stage_one "$mode" "$to" "$from" ;;
    esac
}

stage_one() {
    install -d "$(dirname "$2")"
    case $2 in
        *.service) sed "s|/usr/bin/orlop|$stage_prefix/bin/orlop|" "$3" >"$2.new" && chmod "$1" "$2.new" ;;
        *) install -m "$1" "$3" "$2.new" ;;
    esac
    mv -f "$2.new" "$2"
}

stage_link() {
    install -d "$(dirname "$1")"
    ln -sfn "$2" "$1"
}

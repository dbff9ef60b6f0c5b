# What a change of the installed files means for the running system. In both packages' scripts, and sourced by install.
#
# Never: touches orlop-pods.service, except when the software is removed; starts a node that has not been joined.

systemd_runs() {
    [ -d /run/systemd/system ] && command -v systemctl >/dev/null 2>&1
}

# New files are there: the modules and sysctls they ask for, and the units as systemd knows them.
after_install() {
    systemd_runs || return 0
    systemctl daemon-reload || true
    systemctl restart systemd-modules-load.service systemd-sysctl.service || true
}

# As above, and a daemon that runs becomes the new one. Pods, their connections and the Node's conditions stay.
after_upgrade() {
    after_install
    systemd_runs || return 0
    systemctl try-restart orlop.service orlop-standalone.service || true
}

# The program goes: nobody would look after the pods any more, so they end, too.
before_remove() {
    systemd_runs || return 0
    systemctl disable orlop.service orlop-standalone.service || true
    systemctl stop orlop.service orlop-standalone.service orlop-pods.service || true
}

after_remove() {
    systemd_runs || return 0
    systemctl daemon-reload || true
}

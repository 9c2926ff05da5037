"""What the packages of `debs` and `rpms` have in common."""

# What scripts do that no list of places foresees: to files that no package owns.
ANYWHERE = """cd /opt/anywhere
echo more >>appended; chmod 600 mode; chown 1:1 owner; touch -d @1 times; : >truncated
printf new | dd of=overwritten conv=notrunc 2>/dev/null; sed -i s/old/new/ edited; cp appended copied
mv moved moved-away; ln linked link; rm removed; mv -f private replaced"""


def plain(*files):
    """Files of the usual mode."""
    return dict.fromkeys(files, 0o644)
